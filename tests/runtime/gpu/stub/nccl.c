/* NCCL and RCCL without other GPUs: every call is checked and recorded; sums and joins change nothing. */
#include "stub.h"

#include <string.h>

typedef struct { char internal[128]; } unique_id;

static int groups, in_group;

EXPORT const char *ncclGetErrorString(int code) { return code ? "unhandled cuda error" : "no error"; }

EXPORT int ncclGetUniqueId(unique_id *id) {
    int code = entered("ncclGetUniqueId");
    memset(id, 7, sizeof *id);
    return code;
}

EXPORT int ncclCommInitRank(void **group, int ranks, unique_id id, int rank) {
    int code = entered("ncclCommInitRank");
    if (code) return code;
    if (id.internal[0] != 7 || id.internal[127] != 7) return violated(4, "an id that nobody made");
    if (rank < 0 || rank >= ranks) return violated(4, "rank %d of %d", rank, ranks);
    *group = (void *)(uintptr_t)(0x6000 + ++groups);
    record("{\"call\": \"group\", \"rank\": %d, \"ranks\": %d}", rank, ranks);
    return 0;
}

EXPORT int ncclCommDestroy(void *group) {
    record("{\"call\": \"leave\"}");
    return group ? 0 : violated(4, "a group that is none");
}

static int check(const void *from, uint64_t bytes, const void *to, uint64_t room, int type, const void *group) {
    if (!group || (uintptr_t)group <= 0x6000) return violated(4, "a group that is none");
    if (type != 7) return violated(4, "type %d is no f32", type);
    if (!is_live((uint64_t)(uintptr_t)from, bytes, 0)) return violated(1, "values outside of live memory");
    if (!is_live((uint64_t)(uintptr_t)to, room, 0)) return violated(1, "results outside of live memory");
    return 0;
}

EXPORT int ncclAllReduce(const void *from, void *to, size_t count, int type, int op, void *group, void *stream) {
    int code = entered("ncclAllReduce");
    if (!code) code = check(from, 4 * count, to, 4 * count, type, group);
    if (!code && op != 0) code = violated(4, "op %d is no sum", op);
    record("{\"call\": \"all_reduce\", \"from\": %llu, \"to\": %llu, \"count\": %llu, \"stream\": %llu}",
           (unsigned long long)(uintptr_t)from, (unsigned long long)(uintptr_t)to, (unsigned long long)count,
           (unsigned long long)(uintptr_t)stream);
    return code;
}

EXPORT int ncclAllGather(const void *from, void *to, size_t count, int type, void *group, void *stream) {
    int code = entered("ncclAllGather");
    if (!code) code = check(from, 4 * count, to, 4 * count, type, group);
    if (!code && !in_group) code = violated(4, "rows are not gathered in a group of calls");
    record("{\"call\": \"all_gather\", \"from\": %llu, \"to\": %llu, \"count\": %llu, \"stream\": %llu}",
           (unsigned long long)(uintptr_t)from, (unsigned long long)(uintptr_t)to, (unsigned long long)count,
           (unsigned long long)(uintptr_t)stream);
    return code;
}

EXPORT int ncclGroupStart(void) {
    in_group++;
    return 0;
}

EXPORT int ncclGroupEnd(void) {
    if (--in_group < 0) return violated(5, "a group of calls ends that has not begun");
    return 0;
}
