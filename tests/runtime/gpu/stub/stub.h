/* A GPU driver without a GPU: it keeps "device" memory in host memory, checks every call and records it.

   `core.c` holds memory, configuration and the log; `modules.c` reads what code objects say about their kernels;
   `queue.c` holds streams, events and graphs; `cuda.c` and `hip.c` are the entry points of the two vendors.

   Work is done as late as the rules allow: what is asked of a stream waits there until somebody waits for it. So a host
   buffer that is filled again too early, or memory that is freed too early, shows in the results. */
#ifndef STUB_H
#define STUB_H

#include <stddef.h>
#include <stdint.h>

#define EXPORT __attribute__((visibility("default")))
#define MOST_PARAMETERS 64

/* The codes that both vendors share. */
enum {
    OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_INITIALIZED = 3, NO_DEVICE = 100, INVALID_DEVICE = 101,
    INVALID_IMAGE = 200, INVALID_CONTEXT = 201, NO_BINARY_FOR_GPU = 209, UNSUPPORTED_PTX = 222, INVALID_HANDLE = 400,
    NOT_FOUND = 500, ILLEGAL_ADDRESS = 700, LAUNCH_OUT_OF_RESOURCES = 701, CAPTURE_UNSUPPORTED = 900
};

typedef struct kernel {
    char name[128];
    uint32_t parameters, sizes[MOST_PARAMETERS], most_threads, exact_threads, static_shared;
    uint32_t allowed_shared; /* dynamic bytes that were opted in to */
    uint64_t module;
    struct kernel *next;
} kernel;

typedef struct module {
    uint64_t id;
    kernel *kernels;
    int loaded;
    struct module *next;
} module;

typedef struct {
    kernel *function;
    uint32_t grid[3], block[3], shared;
    int dependent, cooperative;
    uint64_t values[MOST_PARAMETERS];
} launch;

typedef struct graph graph;
typedef struct stream stream;
typedef struct event event;

typedef struct {
    int devices, driver, major, minor, is_hip;
    uint64_t total, free, shared, units;
    char architecture[32], name[64];
} configuration;

extern configuration config;

/* core.c */
int entered(const char *function); /* the code that this call was told to fail with; 0 most of the time */
void record(const char *format, ...);
int violated(int code, const char *format, ...); /* records it and returns the code */
uint64_t allocate(uint64_t bytes, int pinned, int *code);
int release(uint64_t address, int pinned);
int is_live(uint64_t address, uint64_t bytes, int pinned);
uint64_t bytes_in_use(void);

/* modules.c */
module *load_module(const void *image, int *code);
module *find_module(uint64_t id);
int unload_module(uint64_t id);
kernel *find_kernel(uint64_t id, const char *name);
kernel *check_kernel(const void *function);

/* queue.c */
typedef enum { COPY_IN, COPY_OUT, COPY_WITHIN, FILL, LAUNCH, MARK, WAIT, REPLAY } work_kind;
typedef struct work {
    work_kind kind;
    uint64_t to, from, bytes;
    uint8_t value;
    launch what;
    event *mark;
    graph *run;
    struct work *next;
} work;
int submit(void *stream, work item, const char *call);
int check_launch(launch *what, void **parameters);
void *make_stream(void);
void *make_event(void);
void *make_executable(void *recorded);
int end_stream(void *stream);
int end_event(void *event);
int end_graph(void *graph);
int finish(void *stream);
int finish_event(void *event);
int between(float *milliseconds, void *start, void *stop);
int mark(void *event, void *stream);
int wait_for(void *stream, void *event);
int begin_capture(void *stream);
int end_capture(void *stream, void **recorded);
int replay(void *executable, void *stream);
int is_capturing(void);
void forget_queues(void);
void forget_modules(void);

#endif
