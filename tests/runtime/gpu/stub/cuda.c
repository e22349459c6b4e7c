/* The entry points of libcuda that a runtime needs; cuda-bindings asks for each by name and version. */
#include "stub.h"

#include <stdio.h>
#include <string.h>

typedef struct { uint32_t id; uint8_t pad[4]; union { uint8_t bytes[64]; int flag; uint32_t sizes[3]; } value; } attribute;
typedef struct { uint32_t grid[3], block[3], shared; void *stream; attribute *attributes; uint32_t count; } launch_config;
enum { COOPERATIVE = 2, CLUSTER = 4, DEPENDENT = 6 };
enum { MOST_DYNAMIC_SHARED = 8 };
enum { UNITS = 16, MAJOR = 75, MINOR = 76, SHARED_OPT_IN = 97 };

static _Thread_local int context = -1;

#define ENTER(name) int failed = entered(name); if (failed) return failed
#define ENTER_WITH_CONTEXT(name) ENTER(name); \
    if (context < 0) return violated(INVALID_CONTEXT, name " on a thread without a context")

static int get_init(unsigned flags) {
    ENTER("cuInit");
    config.is_hip = 0;
    return flags ? INVALID_VALUE : config.devices ? OK : NO_DEVICE;
}
static int get_version(int *version) { ENTER("cuDriverGetVersion"); *version = config.driver; return OK; }
static int get_count(int *count) { ENTER("cuDeviceGetCount"); *count = config.devices; return OK; }
static int get_device(int *device, int number) {
    ENTER("cuDeviceGet");
    *device = number;
    return number < config.devices ? OK : INVALID_DEVICE;
}
static int get_name(char *name, int room, int device) {
    ENTER("cuDeviceGetName");
    snprintf(name, (size_t)room, "%s", config.name);
    return device < config.devices ? OK : INVALID_DEVICE;
}
static int get_total(size_t *bytes, int device) {
    ENTER("cuDeviceTotalMem");
    *bytes = config.total;
    return device < config.devices ? OK : INVALID_DEVICE;
}
static int get_attribute(int *value, int which, int device) {
    ENTER("cuDeviceGetAttribute");
    if (device >= config.devices) return INVALID_DEVICE;
    switch (which) {
        case UNITS: *value = (int)config.units; return OK;
        case MAJOR: *value = config.major; return OK;
        case MINOR: *value = config.minor; return OK;
        case SHARED_OPT_IN: *value = (int)config.shared; return OK;
    }
    return violated(INVALID_VALUE, "device attribute %d", which);
}
static int retain(void **made, int device) {
    ENTER("cuDevicePrimaryCtxRetain");
    *made = (void *)(uintptr_t)(device + 1);
    return device < config.devices ? OK : INVALID_DEVICE;
}
static int let_go(int device) { ENTER("cuDevicePrimaryCtxRelease"); return device < config.devices ? OK : INVALID_DEVICE; }
static int set_context(void *made) { ENTER("cuCtxSetCurrent"); context = (int)(uintptr_t)made - 1; return OK; }
static int get_memory(size_t *free, size_t *total) {
    ENTER_WITH_CONTEXT("cuMemGetInfo");
    *free = config.free - bytes_in_use();
    *total = config.total;
    return OK;
}
static int load(void **made, const void *image) {
    ENTER_WITH_CONTEXT("cuModuleLoadData");
    int code;
    *made = (void *)(uintptr_t)load_module(image, &code)->id;
    return code;
}
static int unload(void *which) { ENTER_WITH_CONTEXT("cuModuleUnload"); return unload_module((uint64_t)which); }
static int get_function(void **made, void *of, const char *name) {
    ENTER_WITH_CONTEXT("cuModuleGetFunction");
    *made = find_kernel((uint64_t)of, name);
    return *made ? OK : NOT_FOUND;
}
static int set_function(void *which, int attribute_id, int value) {
    ENTER_WITH_CONTEXT("cuFuncSetAttribute");
    kernel *of = check_kernel(which);
    if (!of || attribute_id != MOST_DYNAMIC_SHARED || value < 0 || (uint64_t)value > config.shared) return INVALID_VALUE;
    of->allowed_shared = (uint32_t)value;
    return OK;
}
static int get_memory_of(uint64_t *address, size_t bytes) {
    ENTER_WITH_CONTEXT("cuMemAlloc");
    int code;
    *address = allocate(bytes, 0, &code);
    return code;
}
static int free_memory(uint64_t address) { ENTER_WITH_CONTEXT("cuMemFree"); return release(address, 0); }
static int get_pinned(void **address, size_t bytes, unsigned flags) {
    ENTER_WITH_CONTEXT("cuMemHostAlloc");
    int code;
    *address = (void *)allocate(bytes, 1, &code);
    return flags > 7 ? INVALID_VALUE : code;
}
static int free_pinned(void *address) { ENTER_WITH_CONTEXT("cuMemFreeHost"); return release((uint64_t)address, 1); }
static int copy_in(uint64_t to, const void *from, size_t bytes, void *on) {
    ENTER_WITH_CONTEXT("cuMemcpyHtoDAsync");
    return submit(on, (work){.kind = COPY_IN, .to = to, .from = (uint64_t)from, .bytes = bytes}, "copy_in");
}
static int copy_out(void *to, uint64_t from, size_t bytes, void *on) {
    ENTER_WITH_CONTEXT("cuMemcpyDtoHAsync");
    return submit(on, (work){.kind = COPY_OUT, .to = (uint64_t)to, .from = from, .bytes = bytes}, "copy_out");
}
static int copy_within(uint64_t to, uint64_t from, size_t bytes, void *on) {
    ENTER_WITH_CONTEXT("cuMemcpyDtoDAsync");
    return submit(on, (work){.kind = COPY_WITHIN, .to = to, .from = from, .bytes = bytes}, "copy_within");
}
static int fill(uint64_t to, unsigned char value, size_t bytes, void *on) {
    ENTER_WITH_CONTEXT("cuMemsetD8Async");
    return submit(on, (work){.kind = FILL, .to = to, .value = value, .bytes = bytes}, "fill");
}
static int new_stream(void **made, unsigned flags) {
    ENTER_WITH_CONTEXT("cuStreamCreate");
    *made = make_stream();
    return flags > 1 ? INVALID_VALUE : OK;
}
static int new_event(void **made, unsigned flags) {
    ENTER_WITH_CONTEXT("cuEventCreate");
    *made = make_event();
    return flags > 7 ? INVALID_VALUE : OK;
}
static int drop_stream(void *of) { ENTER_WITH_CONTEXT("cuStreamDestroy"); return end_stream(of); }
static int drop_event(void *of) { ENTER_WITH_CONTEXT("cuEventDestroy"); return end_event(of); }
static int wait_stream(void *of) { ENTER_WITH_CONTEXT("cuStreamSynchronize"); return finish(of); }
static int wait_event(void *of) { ENTER_WITH_CONTEXT("cuEventSynchronize"); return finish_event(of); }
static int record_event(void *of, void *on) { ENTER_WITH_CONTEXT("cuEventRecord"); return mark(of, on); }
static int elapsed(float *ms, void *start, void *stop) { ENTER_WITH_CONTEXT("cuEventElapsedTime"); return between(ms, start, stop); }
static int stream_wait(void *on, void *of, unsigned flags) {
    ENTER_WITH_CONTEXT("cuStreamWaitEvent");
    return flags ? INVALID_VALUE : wait_for(on, of);
}
static int capture(void *on, int mode) { ENTER_WITH_CONTEXT("cuStreamBeginCapture"); return mode > 2 ? INVALID_VALUE : begin_capture(on); }
static int captured(void *on, void **made) {
    int failed = entered("cuStreamEndCapture"), code = end_capture(on, made);
    if (!failed || code) return code;
    end_graph(*made); /* a capture that fails has ended all the same */
    return failed;
}
static int instantiate(void **made, void *from, unsigned long long flags) {
    ENTER_WITH_CONTEXT("cuGraphInstantiate");
    *made = make_executable(from);
    return *made && !flags ? OK : INVALID_VALUE;
}
static int launch_graph(void *what, void *on) { ENTER_WITH_CONTEXT("cuGraphLaunch"); return replay(what, on); }
static int drop_executable(void *of) { ENTER_WITH_CONTEXT("cuGraphExecDestroy"); return end_graph(of); }
static int drop_graph(void *of) { ENTER_WITH_CONTEXT("cuGraphDestroy"); return end_graph(of); }

static int launch_kernel(const launch_config *given, void *function, void **parameters, void **extra) {
    ENTER_WITH_CONTEXT("cuLaunchKernelEx");
    work item = {.kind = LAUNCH, .what = {.function = check_kernel(function), .shared = given->shared}};
    memcpy(item.what.grid, given->grid, 12);
    memcpy(item.what.block, given->block, 12);
    for (uint32_t i = 0; i < given->count; i++) {
        const attribute *row = &given->attributes[i];
        if (row->id == COOPERATIVE) item.what.cooperative = row->value.flag;
        else if (row->id == DEPENDENT) item.what.dependent = row->value.flag;
        else return violated(INVALID_VALUE, "launch attribute %u", row->id);
    }
    if (item.what.dependent && config.major < 9) return violated(INVALID_VALUE, "dependent launch before sm_90");
    if (extra) return violated(INVALID_VALUE, "extra launch options");
    int code = check_launch(&item.what, parameters);
    return code ? code : submit(given->stream, item, "launch");
}

static int error_name(int code, const char **text) {
    static const struct { int code; const char *name; } rows[] = {
        {OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY"}, {NO_DEVICE, "CUDA_ERROR_NO_DEVICE"},
        {NO_BINARY_FOR_GPU, "CUDA_ERROR_NO_BINARY_FOR_GPU"}, {ILLEGAL_ADDRESS, "CUDA_ERROR_ILLEGAL_ADDRESS"},
        {UNSUPPORTED_PTX, "CUDA_ERROR_UNSUPPORTED_PTX_VERSION"}, {INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT"}};
    *text = "CUDA_ERROR_INVALID_VALUE";
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) if (rows[i].code == code) *text = rows[i].name;
    return OK;
}

EXPORT int cuGetProcAddress_v2(const char *name, void **function, int version, uint64_t flags, int *status) {
    static const struct { const char *name; void *function; } rows[] = {
        {"cuGetProcAddress", cuGetProcAddress_v2}, {"cuInit", get_init}, {"cuDriverGetVersion", get_version},
        {"cuDeviceGetCount", get_count}, {"cuDeviceGet", get_device}, {"cuDeviceGetName", get_name},
        {"cuDeviceTotalMem", get_total}, {"cuDeviceGetAttribute", get_attribute},
        {"cuDevicePrimaryCtxRetain", retain}, {"cuDevicePrimaryCtxRelease", let_go}, {"cuCtxSetCurrent", set_context},
        {"cuMemGetInfo", get_memory}, {"cuModuleLoadData", load}, {"cuModuleUnload", unload},
        {"cuModuleGetFunction", get_function}, {"cuFuncSetAttribute", set_function}, {"cuMemAlloc", get_memory_of},
        {"cuMemFree", free_memory}, {"cuMemHostAlloc", get_pinned}, {"cuMemFreeHost", free_pinned},
        {"cuMemcpyHtoDAsync", copy_in}, {"cuMemcpyDtoHAsync", copy_out}, {"cuMemcpyDtoDAsync", copy_within},
        {"cuMemsetD8Async", fill}, {"cuStreamCreate", new_stream}, {"cuStreamDestroy", drop_stream},
        {"cuStreamSynchronize", wait_stream}, {"cuStreamWaitEvent", stream_wait}, {"cuEventCreate", new_event},
        {"cuEventRecord", record_event}, {"cuEventSynchronize", wait_event}, {"cuEventElapsedTime", elapsed},
        {"cuEventDestroy", drop_event}, {"cuStreamBeginCapture", capture}, {"cuStreamEndCapture", captured},
        {"cuGraphInstantiateWithFlags", instantiate}, {"cuGraphLaunch", launch_graph}, {"cuGraphDestroy", drop_graph},
        {"cuGraphExecDestroy", drop_executable}, {"cuLaunchKernelEx", launch_kernel}, {"cuGetErrorName", error_name},
        {"cuGetErrorString", error_name}};
    (void)version; (void)flags;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        if (!strcmp(rows[i].name, name)) {
            *function = rows[i].function;
            if (status) *status = 0;
            return OK;
        }
    *function = NULL;
    if (status) *status = 1;
    return NOT_FOUND;
}
