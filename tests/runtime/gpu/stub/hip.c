/* The entry points of libamdhip64 that a runtime needs. */
#include "stub.h"

#include <stdio.h>
#include <string.h>

enum { ARCHITECTURE_AT = 1160, PROPERTIES_BYTES = 1472 }; /* hipDeviceProp_tR0600, ROCm 6 and later */

static _Thread_local int device = -1;

#define ENTER(name) int failed = entered(name); if (failed) return failed
#define ENTER_WITH_DEVICE(name) ENTER(name); \
    if (device < 0) return violated(INVALID_DEVICE, name " on a thread that chose no device")

EXPORT int hipInit(unsigned flags) {
    ENTER("hipInit");
    config.is_hip = 1;
    return flags ? INVALID_VALUE : config.devices ? OK : NO_DEVICE;
}
EXPORT int hipDriverGetVersion(int *version) { ENTER("hipDriverGetVersion"); *version = config.driver; return OK; }
EXPORT int hipGetDeviceCount(int *count) { ENTER("hipGetDeviceCount"); *count = config.devices; return OK; }
EXPORT int hipSetDevice(int number) {
    ENTER("hipSetDevice");
    device = number;
    return number < config.devices ? OK : INVALID_DEVICE;
}
EXPORT int hipGetDevicePropertiesR0600(uint8_t *properties, int number) {
    ENTER("hipGetDevicePropertiesR0600");
    memset(properties, 0, PROPERTIES_BYTES);
    snprintf((char *)properties, 256, "%s", config.name);
    snprintf((char *)properties + ARCHITECTURE_AT, 256, "%s:sramecc+:xnack-", config.architecture);
    return number < config.devices ? OK : INVALID_DEVICE;
}
EXPORT int hipMemGetInfo(size_t *free, size_t *total) {
    ENTER_WITH_DEVICE("hipMemGetInfo");
    *free = config.free - bytes_in_use();
    *total = config.total;
    return OK;
}
EXPORT int hipModuleLoadData(void **made, const void *image) {
    ENTER_WITH_DEVICE("hipModuleLoadData");
    int code;
    *made = (void *)(uintptr_t)load_module(image, &code)->id;
    return code;
}
EXPORT int hipModuleUnload(void *which) { ENTER_WITH_DEVICE("hipModuleUnload"); return unload_module((uint64_t)which); }
EXPORT int hipModuleGetFunction(void **made, void *of, const char *name) {
    ENTER_WITH_DEVICE("hipModuleGetFunction");
    *made = find_kernel((uint64_t)of, name);
    return *made ? OK : NOT_FOUND;
}
EXPORT int hipMalloc(uint64_t *address, size_t bytes) {
    ENTER_WITH_DEVICE("hipMalloc");
    int code;
    *address = allocate(bytes, 0, &code);
    return code;
}
EXPORT int hipFree(uint64_t address) { ENTER_WITH_DEVICE("hipFree"); return release(address, 0); }
EXPORT int hipHostMalloc(void **address, size_t bytes, unsigned flags) {
    ENTER_WITH_DEVICE("hipHostMalloc");
    int code;
    *address = (void *)allocate(bytes, 1, &code);
    return flags ? INVALID_VALUE : code;
}
EXPORT int hipHostFree(void *address) { ENTER_WITH_DEVICE("hipHostFree"); return release((uint64_t)address, 1); }
EXPORT int hipMemcpyHtoDAsync(uint64_t to, const void *from, size_t bytes, void *on) {
    ENTER_WITH_DEVICE("hipMemcpyHtoDAsync");
    return submit(on, (work){.kind = COPY_IN, .to = to, .from = (uint64_t)from, .bytes = bytes}, "copy_in");
}
EXPORT int hipMemcpyDtoHAsync(void *to, uint64_t from, size_t bytes, void *on) {
    ENTER_WITH_DEVICE("hipMemcpyDtoHAsync");
    return submit(on, (work){.kind = COPY_OUT, .to = (uint64_t)to, .from = from, .bytes = bytes}, "copy_out");
}
EXPORT int hipMemcpyDtoDAsync(uint64_t to, uint64_t from, size_t bytes, void *on) {
    ENTER_WITH_DEVICE("hipMemcpyDtoDAsync");
    return submit(on, (work){.kind = COPY_WITHIN, .to = to, .from = from, .bytes = bytes}, "copy_within");
}
EXPORT int hipMemsetD8Async(uint64_t to, unsigned char value, size_t bytes, void *on) {
    ENTER_WITH_DEVICE("hipMemsetD8Async");
    return submit(on, (work){.kind = FILL, .to = to, .value = value, .bytes = bytes}, "fill");
}
EXPORT int hipStreamCreateWithFlags(void **made, unsigned flags) {
    ENTER_WITH_DEVICE("hipStreamCreateWithFlags");
    *made = make_stream();
    return flags > 1 ? INVALID_VALUE : OK;
}
EXPORT int hipEventCreateWithFlags(void **made, unsigned flags) {
    ENTER_WITH_DEVICE("hipEventCreateWithFlags");
    *made = make_event();
    return flags ? INVALID_VALUE : OK;
}
EXPORT int hipStreamDestroy(void *of) { ENTER_WITH_DEVICE("hipStreamDestroy"); return end_stream(of); }
EXPORT int hipEventDestroy(void *of) { ENTER_WITH_DEVICE("hipEventDestroy"); return end_event(of); }
EXPORT int hipStreamSynchronize(void *of) { ENTER_WITH_DEVICE("hipStreamSynchronize"); return finish(of); }
EXPORT int hipEventSynchronize(void *of) { ENTER_WITH_DEVICE("hipEventSynchronize"); return finish_event(of); }
EXPORT int hipEventRecord(void *of, void *on) { ENTER_WITH_DEVICE("hipEventRecord"); return mark(of, on); }
EXPORT int hipEventElapsedTime(float *ms, void *start, void *stop) {
    ENTER_WITH_DEVICE("hipEventElapsedTime");
    return between(ms, start, stop);
}
EXPORT int hipStreamBeginCapture(void *on, int mode) {
    ENTER_WITH_DEVICE("hipStreamBeginCapture");
    return mode > 2 ? INVALID_VALUE : begin_capture(on);
}
EXPORT int hipStreamEndCapture(void *on, void **made) {
    int failed = entered("hipStreamEndCapture"), code = end_capture(on, made);
    if (!failed || code) return code;
    end_graph(*made); /* a capture that fails has ended all the same */
    return failed;
}
EXPORT int hipGraphInstantiate(void **made, void *from, void **node, char *text, size_t room) {
    ENTER_WITH_DEVICE("hipGraphInstantiate");
    *made = make_executable(from);
    return *made && !node && !text && !room ? OK : INVALID_VALUE;
}
EXPORT int hipGraphLaunch(void *what, void *on) { ENTER_WITH_DEVICE("hipGraphLaunch"); return replay(what, on); }
EXPORT int hipGraphExecDestroy(void *of) { ENTER_WITH_DEVICE("hipGraphExecDestroy"); return end_graph(of); }
EXPORT int hipGraphDestroy(void *of) { ENTER_WITH_DEVICE("hipGraphDestroy"); return end_graph(of); }

static int launch_any(void *function, const uint32_t grid[3], const uint32_t block[3], uint32_t shared, void *on,
                      void **parameters, int cooperative) {
    work item = {.kind = LAUNCH, .what = {.function = check_kernel(function), .shared = shared}};
    memcpy(item.what.grid, grid, 12);
    memcpy(item.what.block, block, 12);
    item.what.cooperative = cooperative;
    int code = check_launch(&item.what, parameters);
    return code ? code : submit(on, item, "launch");
}
EXPORT int hipModuleLaunchKernel(void *f, uint32_t gx, uint32_t gy, uint32_t gz, uint32_t bx, uint32_t by, uint32_t bz,
                                 uint32_t shared, void *on, void **parameters, void **extra) {
    ENTER_WITH_DEVICE("hipModuleLaunchKernel");
    if (extra) return violated(INVALID_VALUE, "extra launch options");
    return launch_any(f, (uint32_t[]){gx, gy, gz}, (uint32_t[]){bx, by, bz}, shared, on, parameters, 0);
}
EXPORT int hipModuleLaunchCooperativeKernel(void *f, uint32_t gx, uint32_t gy, uint32_t gz, uint32_t bx, uint32_t by,
                                            uint32_t bz, uint32_t shared, void *on, void **parameters) {
    ENTER_WITH_DEVICE("hipModuleLaunchCooperativeKernel");
    return launch_any(f, (uint32_t[]){gx, gy, gz}, (uint32_t[]){bx, by, bz}, shared, on, parameters, 1);
}
EXPORT const char *hipGetErrorName(int code) {
    static const struct { int code; const char *name; } rows[] = {
        {OUT_OF_MEMORY, "hipErrorOutOfMemory"}, {NO_DEVICE, "hipErrorNoDevice"},
        {NO_BINARY_FOR_GPU, "hipErrorNoBinaryForGpu"}, {ILLEGAL_ADDRESS, "hipErrorIllegalAddress"}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) if (rows[i].code == code) return rows[i].name;
    return "hipErrorInvalidValue";
}
