/* What code objects say about themselves: the machine they are for, their kernels, and the parameters of each.

   cubin: `.nv.info.KERNEL` sections. PTX: its text. hsaco: the metadata note, a map in MessagePack. */
#include "stub.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct { uint8_t ident[16]; uint16_t type, machine; uint32_t version; uint64_t entry, segments, sections;
                 uint32_t flags; uint16_t own, segment_size, segment_count, section_size, section_count, names; } header;
typedef struct { uint32_t name, type; uint64_t flags, address, offset, size; uint32_t link, info;
                 uint64_t align, entry; } section;

enum { ATTRIBUTE_MAX_THREADS = 0x05, ATTRIBUTE_EXACT_THREADS = 0x10, ATTRIBUTE_PARAMETER = 0x17,
       ATTRIBUTE_PARAMETER_2 = 0x45, FORMAT_SIZED = 4 };

static module *modules;
static uint64_t next_module = 1;

static kernel *add_kernel(module *to, const char *name, size_t length) {
    kernel *row = calloc(1, sizeof *row);
    if (length >= sizeof row->name) abort();
    memcpy(row->name, name, length);
    row->module = to->id;
    row->allowed_shared = 48 << 10;
    row->next = to->kernels;
    return to->kernels = row;
}

/* cubin */

static void read_information(kernel *row, const uint8_t *at, const uint8_t *end) {
    while (at + 4 <= end) {
        uint16_t size;
        memcpy(&size, at + 2, 2);
        const uint8_t *data = at + 4;
        uint32_t words[3] = {0};
        if (at[0] != FORMAT_SIZED) { at += 4; continue; }
        memcpy(words, data, size < 12 ? size : 12);
        if (at[1] == ATTRIBUTE_PARAMETER || at[1] == ATTRIBUTE_PARAMETER_2) {
            uint32_t ordinal = words[1] & 0xffff;
            if (ordinal >= MOST_PARAMETERS) abort();
            row->sizes[ordinal] = words[2] >> 18;
            if (ordinal + 1 > row->parameters) row->parameters = ordinal + 1;
        }
        if (at[1] == ATTRIBUTE_MAX_THREADS) row->most_threads = words[0] * words[1] * words[2];
        if (at[1] == ATTRIBUTE_EXACT_THREADS) row->exact_threads = words[0] * words[1] * words[2];
        at = data + size;
    }
}

static int is_for_this_cuda(const header *elf) {
    int device = config.major * 10 + config.minor;
    if (elf->ident[8] >= 8) return (int)(elf->flags >> 8 & 0xff) == device; /* code for exactly one architecture */
    int made_for = elf->flags & 0xff;
    return made_for / 10 == device / 10 && made_for <= device;
}

static void read_cubin(module *to, const uint8_t *image) {
    const header *elf = (const header *)image;
    const section *rows = (const section *)(image + elf->sections);
    const char *names = (const char *)image + rows[elf->names].offset;
    for (int i = 0; i < elf->section_count; i++) {
        const char *name = names + rows[i].name, *prefix = ".nv.info.";
        if (strncmp(name, prefix, strlen(prefix))) continue;
        const char *own = name + strlen(prefix);
        const uint8_t *data = image + rows[i].offset;
        read_information(add_kernel(to, own, strlen(own)), data, data + rows[i].size);
    }
}

/* PTX */

static int read_ptx(module *to, const char *text) {
    int major = 0, minor = 0, target = 0;
    const char *version = strstr(text, ".version "), *machine = strstr(text, ".target sm_");
    if (!version || !machine || sscanf(version, ".version %d.%d", &major, &minor) != 2) return INVALID_IMAGE;
    sscanf(machine, ".target sm_%d", &target);
    if (target > config.major * 10 + config.minor) return NO_BINARY_FOR_GPU;
    if ((major + 4) * 1000 + minor * 10 > config.driver) return UNSUPPORTED_PTX; /* PTX 9.4 came with CUDA 13.4 */
    for (const char *at = text; (at = strstr(at, ".visible .entry ")) != NULL;) {
        at += strlen(".visible .entry ");
        const char *open = strchr(at, '('), *close = open ? strchr(open, ')') : NULL;
        if (!close) return INVALID_IMAGE;
        kernel *row = add_kernel(to, at, (size_t)(open - at));
        for (const char *parameter = open; (parameter = strstr(parameter, ".param .")) && parameter < close;) {
            int bits = 0;
            sscanf(parameter, ".param .%*1[a-z]%d", &bits);
            row->sizes[row->parameters++] = (uint32_t)bits / 8;
            parameter++;
        }
        const char *threads = strstr(close, ".reqntid "), *body = strchr(close, '{');
        if (threads && threads < body) sscanf(threads, ".reqntid %u", &row->exact_threads);
    }
    return OK;
}

/* hsaco: just enough of MessagePack to walk maps of text keys */

typedef struct { const uint8_t *at, *end; } reader;

static uint64_t big_endian(reader *r, int bytes) {
    uint64_t value = 0;
    while (bytes--) value = value << 8 | *r->at++;
    return value;
}

/* The next thing: 'm'ap or 'a'rray of *count, 's'tring of *count bytes at r->at, 'u'nsigned *count, else 'x'. */
static char next_thing(reader *r, uint64_t *count) {
    uint8_t tag = *r->at++;
    if (tag < 0x80) return *count = tag, 'u';
    if (tag < 0x90) return *count = tag & 15, 'm';
    if (tag < 0xa0) return *count = tag & 15, 'a';
    if (tag < 0xc0) return *count = tag & 31, 's';
    if (tag >= 0xcc && tag <= 0xcf) return *count = big_endian(r, 1 << (tag - 0xcc)), 'u';
    if (tag >= 0xd9 && tag <= 0xdb) return *count = big_endian(r, 1 << (tag - 0xd9)), 's';
    if (tag == 0xdc || tag == 0xdd) return *count = big_endian(r, 2 << (tag - 0xdc)), 'a';
    if (tag == 0xde || tag == 0xdf) return *count = big_endian(r, 2 << (tag - 0xde)), 'm';
    if (tag >= 0xd0 && tag <= 0xd3) big_endian(r, 1 << (tag - 0xd0));
    return 'x';
}

static void skip(reader *r) {
    uint64_t count = 0;
    char kind = next_thing(r, &count);
    if (kind == 's') r->at += count;
    if (kind == 'm') count *= 2;
    if (kind == 'm' || kind == 'a') while (count--) skip(r);
}

/* The value of `key` in the map at r. */
static int find(reader map, const char *key, reader *value) {
    uint64_t count = 0, length = 0;
    if (next_thing(&map, &count) != 'm') return 0;
    while (count--) {
        if (next_thing(&map, &length) != 's') return 0;
        int same = length == strlen(key) && !memcmp(map.at, key, length);
        map.at += length;
        if (same) return *value = map, 1;
        skip(&map);
    }
    return 0;
}

static uint64_t number(reader map, const char *key) {
    uint64_t value = 0;
    reader at;
    return find(map, key, &at) && next_thing(&at, &value) == 'u' ? value : 0;
}

/* Whether the driver fills an argument by itself. */
static int is_hidden(reader map) {
    uint64_t length = 0;
    reader at;
    return find(map, ".value_kind", &at) && next_thing(&at, &length) == 's' && !strncmp((const char *)at.at, "hidden_", 7);
}

static void read_kernel(module *to, reader map) {
    uint64_t length = 0, count = 0;
    reader name, rows;
    if (!find(map, ".name", &name) || next_thing(&name, &length) != 's') abort();
    kernel *row = add_kernel(to, (const char *)name.at, length);
    row->most_threads = (uint32_t)number(map, ".max_flat_workgroup_size");
    row->static_shared = (uint32_t)number(map, ".group_segment_fixed_size");
    if (!find(map, ".args", &rows) || next_thing(&rows, &count) != 'a') abort();
    for (; count--; skip(&rows))
        if (!is_hidden(rows)) row->sizes[row->parameters++] = (uint32_t)number(rows, ".size");
}

static int is_for_this_hip(const header *elf) {
    static const struct { const char *name; uint32_t machine; } rows[] = {
        {"gfx90a", 0x3f}, {"gfx942", 0x4c}, {"gfx950", 0x4f}, {"gfx1100", 0x41}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        if (!strncmp(rows[i].name, config.architecture, strlen(rows[i].name)))
            return (elf->flags & 0xff) == rows[i].machine;
    return 0;
}

static int read_hsaco(module *to, const uint8_t *image) {
    const header *elf = (const header *)image;
    const section *rows = (const section *)(image + elf->sections);
    for (int i = 0; i < elf->section_count; i++) {
        uint32_t note[3];
        if (rows[i].type != 7) continue;
        const uint8_t *at = image + rows[i].offset;
        memcpy(note, at, 12);
        reader map = {at + 12 + (note[0] + 3) / 4 * 4, NULL}, kernels;
        uint64_t count = 0;
        if (note[2] != 32 || !find(map, "amdhsa.kernels", &kernels)) continue;
        if (next_thing(&kernels, &count) != 'a') return INVALID_IMAGE;
        for (; count--; skip(&kernels)) read_kernel(to, kernels);
        return OK;
    }
    return INVALID_IMAGE;
}

/* both */

static int read_image(module *to, const void *image) {
    if (memcmp(image, "\x7f" "ELF", 4)) return config.is_hip ? INVALID_IMAGE : read_ptx(to, image);
    const header *elf = image;
    if (config.is_hip) return elf->machine == 224 && is_for_this_hip(elf) ? read_hsaco(to, image) : NO_BINARY_FOR_GPU;
    if (elf->machine != 190 || !is_for_this_cuda(elf)) return NO_BINARY_FOR_GPU;
    read_cubin(to, image);
    return OK;
}

module *load_module(const void *image, int *code) {
    module *row = calloc(1, sizeof *row);
    row->id = next_module++;
    row->loaded = 1;
    row->next = modules;
    modules = row;
    *code = read_image(row, image);
    for (kernel *k = row->kernels; k; k = k->next)
        record("{\"call\": \"load\", \"module\": %llu, \"kernel\": \"%s\", \"parameters\": %u}",
               (unsigned long long)row->id, k->name, k->parameters);
    return row;
}

module *find_module(uint64_t id) {
    for (module *row = modules; row; row = row->next) if (row->id == id && row->loaded) return row;
    return NULL;
}

kernel *find_kernel(uint64_t id, const char *name) {
    module *of = find_module(id);
    for (kernel *row = of ? of->kernels : NULL; row; row = row->next) if (!strcmp(row->name, name)) return row;
    return NULL;
}

kernel *check_kernel(const void *function) {
    for (module *of = modules; of; of = of->next)
        for (kernel *row = of->kernels; row; row = row->next)
            if (row == function) return of->loaded ? row : NULL;
    return NULL;
}

int unload_module(uint64_t id) {
    module *row = find_module(id);
    if (!row) return violated(INVALID_HANDLE, "module %llu is unloaded and was not loaded", (unsigned long long)id);
    row->loaded = 0;
    record("{\"call\": \"unload\", \"module\": %llu}", (unsigned long long)id);
    return OK;
}

void forget_modules(void) {
    while (modules) {
        module *row = modules;
        modules = row->next;
        while (row->kernels) {
            kernel *gone = row->kernels;
            row->kernels = gone->next;
            free(gone);
        }
        free(row);
    }
}
