/* Streams, events, graphs, and the checks of a launch. Work waits in its stream until somebody waits for it. */
#define _GNU_SOURCE
#include "stub.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct stream { work *first, *last; graph *capturing; stream *next; };
struct event { stream *of; uint64_t recorded, done; double time; event *next; };
struct graph { uint64_t id; int executable; work *first, *last; graph *next; };

static stream *streams;
static event *events;
static graph *graphs;
static uint64_t next_graph = 1, replays;
static double clock_now;

/* What tests hang in to run a launch: the kernel's name, its module, blocks in x, y and z, the parameters. */
typedef void (*observer)(const char *, uint64_t, uint32_t, uint32_t, uint32_t, const uint64_t *, uint32_t);
static observer run_launch;
EXPORT void stub_on_launch(observer run) { run_launch = run; }

static stream *known_stream(void *handle) {
    for (stream *row = streams; row; row = row->next) if (row == handle) return row;
    violated(INVALID_HANDLE, "%p is no stream", handle);
    return NULL;
}

static event *known_event(void *handle) {
    for (event *row = events; row; row = row->next) if (row == handle) return row;
    violated(INVALID_HANDLE, "%p is no event", handle);
    return NULL;
}

static graph *known_graph(void *handle, int executable) {
    for (graph *row = graphs; row; row = row->next) if (row == handle && row->executable == executable) return row;
    violated(INVALID_HANDLE, "%p is no graph", handle);
    return NULL;
}

#define MAKE(type, list) type *row = calloc(1, sizeof *row); row->next = list; list = row; return row
void *make_stream(void) { MAKE(stream, streams); }
void *make_event(void) { MAKE(event, events); }
static graph *make_graph(void) { MAKE(graph, graphs); }

int is_capturing(void) {
    for (stream *row = streams; row; row = row->next) if (row->capturing) return 1;
    return 0;
}

static void push(work **first, work **last, work item) {
    work *row = malloc(sizeof *row);
    *row = item;
    row->next = NULL;
    if (*last) (*last)->next = row; else *first = row;
    *last = row;
}

/* Checks */

static int check_memory(const work *item, const char *call) {
    int writes_device = item->kind != COPY_OUT, reads_host = item->kind == COPY_IN;
    if (!is_live(item->to, item->bytes, !writes_device))
        return violated(ILLEGAL_ADDRESS, "%s writes %llu bytes outside of %s memory", call,
                        (unsigned long long)item->bytes, writes_device ? "device" : "pinned");
    if (item->kind != FILL && !is_live(item->from, item->bytes, reads_host))
        return violated(ILLEGAL_ADDRESS, "%s reads %llu bytes outside of %s memory", call,
                        (unsigned long long)item->bytes, reads_host ? "pinned" : "device");
    return OK;
}

static int check_pointers(const launch *what) {
    for (uint32_t i = 0; i < what->function->parameters; i++)
        if (what->function->sizes[i] == 8 && what->values[i] && !is_live(what->values[i], 1, 0))
            return violated(ILLEGAL_ADDRESS, "parameter %u of %s points outside of device memory", i,
                            what->function->name);
    return OK;
}

static int check_bounds(const launch *what) {
    const kernel *f = what->function;
    uint64_t threads = (uint64_t)what->block[0] * what->block[1] * what->block[2];
    uint64_t most = f->most_threads ? f->most_threads : 1024;
    for (int i = 0; i < 3; i++)
        if (!what->grid[i] || (i && what->grid[i] > 65535) || what->grid[i] > 0x7fffffff ||
            (config.is_hip && (uint64_t)what->grid[i] * what->block[i] > 0xffffffff))
            return violated(INVALID_VALUE, "%s has a grid of %u x %u x %u", f->name, what->grid[0], what->grid[1],
                            what->grid[2]);
    if (!threads || threads > most || (f->exact_threads && threads != f->exact_threads))
        return violated(INVALID_VALUE, "%s has blocks of %llu threads, made for %u", f->name,
                        (unsigned long long)threads, f->exact_threads ? f->exact_threads : (uint32_t)most);
    if (config.is_hip && f->most_threads && threads != f->most_threads)
        return violated(INVALID_VALUE, "%s has blocks of %llu threads, made for %u", f->name,
                        (unsigned long long)threads, f->most_threads);
    if (what->shared > (config.is_hip ? config.shared : f->allowed_shared) ||
        what->shared + f->static_shared > config.shared)
        return violated(INVALID_VALUE, "%s asks for %u bytes of shared memory that were not allowed", f->name,
                        what->shared);
    return OK;
}

static void record_launch(const launch *what, uint64_t captured) {
    char text[MOST_PARAMETERS * 24] = "";
    int size = 0;
    for (uint32_t i = 0; i < what->function->parameters; i++)
        size += snprintf(text + size, sizeof text - (size_t)size, "%s%llu", i ? ", " : "",
                         (unsigned long long)what->values[i]);
    record("{\"call\": \"launch\", \"kernel\": \"%s\", \"module\": %llu, \"grid\": [%u, %u, %u], \"block\": [%u, %u, %u], "
           "\"shared\": %u, \"dependent\": %d, \"cooperative\": %d, \"graph\": %llu, \"parameters\": [%s]}",
           what->function->name, (unsigned long long)what->function->module, what->grid[0], what->grid[1],
           what->grid[2], what->block[0], what->block[1], what->block[2], what->shared, what->dependent,
           what->cooperative, (unsigned long long)captured, text);
}

int check_launch(launch *what, void **parameters) {
    if (!what->function || !parameters) return violated(INVALID_HANDLE, "a launch of no kernel, or of an unloaded one");
    for (uint32_t i = 0; i < what->function->parameters; i++) {
        if (!parameters[i]) return violated(INVALID_VALUE, "%s lacks parameter %u", what->function->name, i);
        what->values[i] = 0;
        memcpy(&what->values[i], parameters[i], what->function->sizes[i]);
    }
    int code = check_bounds(what);
    return code ? code : check_pointers(what);
}

/* Doing the work */

static int run_until(stream *of, event *until);

static void run_one(const work *item) {
    clock_now += 1e-6;
    switch (item->kind) {
        case COPY_IN: case COPY_OUT: case COPY_WITHIN:
            if (check_memory(item, "a copy whose memory was freed before its turn")) return;
            memcpy((void *)item->to, (const void *)item->from, item->bytes);
            break;
        case FILL:
            if (check_memory(item, "a fill whose memory was freed before its turn")) return;
            memset((void *)item->to, item->value, item->bytes);
            break;
        case LAUNCH:
            if (check_pointers(&item->what)) return;
            if (run_launch)
                run_launch(item->what.function->name, item->what.function->module, item->what.grid[0],
                           item->what.grid[1], item->what.grid[2], item->what.values, item->what.function->parameters);
            break;
        case MARK: item->mark->done++; item->mark->time = clock_now; break;
        case WAIT: run_until(item->mark->of, item->mark); break;
        case REPLAY:
            for (const work *row = item->run->first; row; row = row->next) run_one(row);
    }
}

static int run_until(stream *of, event *until) {
    while (of && of->first && !(until && until->done >= until->recorded)) {
        work *item = of->first;
        of->first = item->next;
        if (!of->first) of->last = NULL;
        run_one(item);
        free(item);
    }
    return OK;
}

int submit(void *handle, work item, const char *call) {
    stream *to = known_stream(handle);
    if (!to) return INVALID_HANDLE;
    int code = OK;
    if (item.kind == COPY_IN || item.kind == COPY_OUT || item.kind == COPY_WITHIN || item.kind == FILL) {
        code = check_memory(&item, call);
        record("{\"call\": \"%s\", \"to\": %llu, \"from\": %llu, \"bytes\": %llu, \"graph\": %llu}", call,
               (unsigned long long)item.to, (unsigned long long)item.from, (unsigned long long)item.bytes,
               (unsigned long long)(to->capturing ? to->capturing->id : 0));
    }
    if (item.kind == LAUNCH) record_launch(&item.what, to->capturing ? to->capturing->id : 0);
    if (code) return code;
    if (!to->capturing) return push(&to->first, &to->last, item), OK;
    if (item.kind == MARK || item.kind == WAIT || item.kind == REPLAY)
        return violated(CAPTURE_UNSUPPORTED, "%s while a graph is captured", call);
    return push(&to->capturing->first, &to->capturing->last, item), OK;
}

int mark(void *handle, void *on) {
    event *row = known_event(handle);
    if (!row) return INVALID_HANDLE;
    row->of = known_stream(on);
    row->recorded++;
    return submit(on, (work){.kind = MARK, .mark = row}, "mark");
}

int wait_for(void *on, void *handle) {
    event *row = known_event(handle);
    return row ? submit(on, (work){.kind = WAIT, .mark = row}, "wait") : INVALID_HANDLE;
}

int finish(void *handle) {
    stream *row = known_stream(handle);
    if (!row) return INVALID_HANDLE;
    if (row->capturing) return violated(CAPTURE_UNSUPPORTED, "a stream is waited for while it is captured");
    record("{\"call\": \"finish\"}");
    return run_until(row, NULL);
}

int finish_event(void *handle) {
    event *row = known_event(handle);
    if (!row) return INVALID_HANDLE;
    record("{\"call\": \"finish_event\"}");
    return row->recorded ? run_until(row->of, row) : OK;
}

int between(float *milliseconds, void *start, void *stop) {
    event *first = known_event(start), *last = known_event(stop);
    if (!first || !last || !first->done || !last->done) return INVALID_HANDLE;
    *milliseconds = (float)((last->time - first->time) * 1e3);
    return OK;
}

/* Graphs */

int begin_capture(void *handle) {
    stream *row = known_stream(handle);
    if (!row || row->capturing) return violated(CAPTURE_UNSUPPORTED, "a capture within a capture");
    row->capturing = make_graph();
    row->capturing->id = next_graph++;
    record("{\"call\": \"begin_capture\", \"graph\": %llu}", (unsigned long long)row->capturing->id);
    return OK;
}

int end_capture(void *handle, void **recorded) {
    stream *row = known_stream(handle);
    if (!row || !row->capturing) return violated(INVALID_VALUE, "a capture ends that did not begin");
    *recorded = row->capturing;
    row->capturing = NULL;
    return OK;
}

void *make_executable(void *recorded) {
    graph *from = known_graph(recorded, 0), *made = from ? make_graph() : NULL;
    if (!made) return NULL;
    made->id = from->id;
    made->executable = 1;
    for (work *row = from->first; row; row = row->next) push(&made->first, &made->last, *row);
    record("{\"call\": \"instantiate\", \"graph\": %llu}", (unsigned long long)made->id);
    return made;
}

int replay(void *executable, void *on) {
    graph *row = known_graph(executable, 1);
    if (!row) return INVALID_HANDLE;
    record("{\"call\": \"replay\", \"graph\": %llu, \"number\": %llu}", (unsigned long long)row->id,
           (unsigned long long)replays++);
    return submit(on, (work){.kind = REPLAY, .run = row}, "replay");
}

/* Ends */

static void drop(work *row) {
    while (row) {
        work *gone = row;
        row = row->next;
        free(gone);
    }
}

#define END(type, list, handle, drops) \
    for (type **place = &list; *place; place = &(*place)->next) { \
        type *row = *place; \
        if (row != (type *)(handle)) continue; \
        *place = row->next; \
        drops; \
        free(row); \
        return OK; \
    } \
    return violated(INVALID_HANDLE, "%p is destroyed and does not exist", (void *)(handle))

int end_stream(void *handle) {
    stream *found = known_stream(handle);
    if (found) run_until(found, NULL);
    END(stream, streams, handle, drop(row->first));
}
int end_event(void *handle) { END(event, events, handle, (void)row); }
int end_graph(void *handle) { END(graph, graphs, handle, drop(row->first)); }

void forget_queues(void) {
    run_launch = NULL;
    while (streams) { drop(streams->first); streams->first = streams->last = NULL; end_stream(streams); }
    while (events) end_event(events);
    while (graphs) end_graph(graphs);
}

EXPORT uint64_t stub_handles(void) {
    uint64_t count = 0;
    for (stream *row = streams; row; row = row->next) count++;
    for (event *row = events; row; row = row->next) count++;
    for (graph *row = graphs; row; row = row->next) count++;
    return count;
}
