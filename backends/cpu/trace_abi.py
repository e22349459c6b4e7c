"""What a tracing build adds: a callback that gets every intermediate value, from one thread."""

from __future__ import annotations


def declarations() -> str:
    """The callback, and the function that hands values to it."""
    return _TRACE


_TRACE = """
enum { NO_LAYER = UINT32_MAX };
typedef void llamac_trace_function(const char *graph, uint32_t op, uint32_t result, uint32_t layer, const void *values,
    uint64_t stride);
static llamac_trace_function *trace_function;

/* Called with every result of every op: its place in the graph, and where its rows lie, `stride` elements apart. */
__attribute__((visibility("default"))) void llamac_set_trace(llamac_trace_function *function)
{
  trace_function = function;
}

static void llamac_trace(const llamac_thread *th, const char *graph, uint32_t op, uint32_t result, uint32_t layer,
    const void *values, uint64_t stride)
{
  if (th->id == 0 && trace_function != NULL) trace_function(graph, op, result, layer, values, stride);
}
"""
