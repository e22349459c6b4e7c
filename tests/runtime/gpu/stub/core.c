/* Memory, configuration, failures on demand, and the log: one JSON object a line. */
#define _GNU_SOURCE
#include "stub.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

configuration config;

typedef struct block {
    uint64_t address, bytes, mapped, mapped_bytes;
    int pinned;
    struct block *next;
} block;

typedef struct failure {
    char function[64];
    int calls, code;
    struct failure *next;
} failure;

#define POISON_AT_MOST (256u << 20)
#define PAGE 4096u
#define ALIGNMENT 256u

static block *blocks;
static failure *failures;
static char *log_text;
static size_t log_size, log_room;

static void append(const char *text, size_t size) {
    if (log_size + size + 1 > log_room) {
        log_room = 2 * (log_size + size + 1);
        log_text = realloc(log_text, log_room);
    }
    memcpy(log_text + log_size, text, size);
    log_size += size;
    log_text[log_size] = 0;
}

static void append_line(const char *format, va_list values) {
    char line[4096];
    int size = vsnprintf(line, sizeof line - 1, format, values);
    if (size >= (int)sizeof line - 1) abort();
    line[size++] = '\n';
    append(line, (size_t)size);
}

void record(const char *format, ...) {
    va_list values;
    va_start(values, format);
    append_line(format, values);
    va_end(values);
}

int violated(int code, const char *format, ...) {
    char reason[1024];
    va_list values;
    va_start(values, format);
    vsnprintf(reason, sizeof reason, format, values);
    va_end(values);
    record("{\"call\": \"violation\", \"reason\": \"%s\"}", reason);
    return code;
}

int entered(const char *function) {
    for (failure *row = failures; row; row = row->next)
        if (row->calls > 0 && !strcmp(row->function, function) && --row->calls == 0) return row->code;
    return OK;
}

uint64_t bytes_in_use(void) {
    uint64_t sum = 0;
    for (block *row = blocks; row; row = row->next) sum += row->pinned ? 0 : row->bytes;
    return sum;
}

uint64_t allocate(uint64_t bytes, int pinned, int *code) {
    if (bytes == 0) return *code = violated(INVALID_VALUE, "an allocation of 0 bytes"), 0;
    if (is_capturing()) return *code = violated(CAPTURE_UNSUPPORTED, "an allocation while a graph is captured"), 0;
    if (!pinned && bytes_in_use() + bytes > config.free) return *code = OUT_OF_MEMORY, 0;
    /* It ends, but for the alignment, where a page begins that nobody may touch; before it lies another such page. */
    uint64_t room = (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT, whole = (room + PAGE - 1) / PAGE * PAGE + 2 * PAGE;
    uint8_t *mapped = mmap(NULL, whole, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapped == MAP_FAILED) return *code = OUT_OF_MEMORY, 0;
    mprotect(mapped, PAGE, PROT_NONE);
    mprotect(mapped + whole - PAGE, PAGE, PROT_NONE);
    void *memory = mapped + whole - PAGE - room;
    /* What nobody has written is NaN in every type, and page -1. Very large memory stays zero and costs nothing. */
    if (bytes <= POISON_AT_MOST) memset(memory, 0xff, bytes);
    block *row = malloc(sizeof *row);
    *row = (block){(uint64_t)memory, bytes, (uint64_t)mapped, whole, pinned, blocks};
    blocks = row;
    *code = OK;
    record("{\"call\": \"%s\", \"address\": %llu, \"bytes\": %llu}", pinned ? "pin" : "allocate",
           (unsigned long long)row->address, (unsigned long long)bytes);
    return row->address;
}

int release(uint64_t address, int pinned) {
    for (block **place = &blocks; *place; place = &(*place)->next) {
        block *row = *place;
        if (row->address != address || row->pinned != pinned) continue;
        *place = row->next;
        munmap((void *)row->mapped, row->mapped_bytes);
        free(row);
        record("{\"call\": \"%s\", \"address\": %llu}", pinned ? "unpin" : "free", (unsigned long long)address);
        return OK;
    }
    return violated(INVALID_VALUE, "%llx is freed and was not allocated", (unsigned long long)address);
}

int is_live(uint64_t address, uint64_t bytes, int pinned) {
    for (block *row = blocks; row; row = row->next)
        if (row->pinned == pinned && address >= row->address && address + bytes <= row->address + row->bytes &&
            address + bytes >= address)
            return 1;
    return 0;
}

/* What tests call. */

EXPORT void stub_set(const char *key, uint64_t value) {
    if (!strcmp(key, "devices")) config.devices = (int)value;
    if (!strcmp(key, "driver")) config.driver = (int)value;
    if (!strcmp(key, "major")) config.major = (int)value;
    if (!strcmp(key, "minor")) config.minor = (int)value;
    if (!strcmp(key, "total")) config.total = value;
    if (!strcmp(key, "free")) config.free = value;
    if (!strcmp(key, "shared")) config.shared = value;
    if (!strcmp(key, "units")) config.units = value;
}

EXPORT void stub_set_text(const char *key, const char *value) {
    char *place = !strcmp(key, "name") ? config.name : config.architecture;
    snprintf(place, 32, "%s", value);
}

/* Processes that no test has told anything have what the environment says, as in "devices=2;architecture=gfx942". */
__attribute__((constructor)) static void configure(void) {
    const char *given = getenv("LLAMAC_GPU_STUB");
    char *copy = given ? strdup(given) : NULL, *rest = copy;
    for (char *part; rest && (part = strsep(&rest, ";"));) {
        char *value = strchr(part, '=');
        if (!value) continue;
        *value++ = 0;
        if (!strcmp(part, "architecture") || !strcmp(part, "name")) stub_set_text(part, value);
        else stub_set(part, strtoull(value, NULL, 10));
    }
    free(copy);
}

EXPORT void stub_fail(const char *function, int call, int code) {
    failure *row = calloc(1, sizeof *row);
    snprintf(row->function, sizeof row->function, "%s", function);
    row->calls = call;
    row->code = code;
    row->next = failures;
    failures = row;
}

EXPORT const char *stub_log(void) { return log_text ? log_text : ""; }

EXPORT void stub_clear_log(void) {
    log_size = 0;
    if (log_text) *log_text = 0;
}

EXPORT uint64_t stub_blocks(void) {
    uint64_t count = 0;
    for (block *row = blocks; row; row = row->next) count++;
    return count;
}

/* Bytes from an address of device memory to the end of its allocation; 0 outside. */
EXPORT uint64_t stub_room(uint64_t address) {
    for (block *row = blocks; row; row = row->next)
        if (!row->pinned && address >= row->address && address < row->address + row->bytes)
            return row->address + row->bytes - address;
    return 0;
}

EXPORT void stub_reset(void) {
    forget_queues();
    forget_modules();
    while (blocks) release(blocks->address, blocks->pinned);
    while (failures) {
        failure *row = failures;
        failures = row->next;
        free(row);
    }
    config.devices = 0;
    stub_clear_log();
}
