"""The part of a code member that places threads and memory: pinning, and copies that each thread does a share of."""

from __future__ import annotations

HEADER = """/* Keeps thread i of the model on processor processors[i]; the thread that calls llamac_step
   goes there for the step and back afterwards. Returns a status. */
int llamac_pin(void *model, const uint32_t *processors);

/* Copies `bytes` bytes, each thread of the model an equal share: the system puts new memory near the processor that
   touches it first. from NULL: fills with zeros. */
void llamac_copy(void *model, uint8_t *to, const uint8_t *from, uint64_t bytes);
"""


def exports() -> str:
    """The exported functions."""
    return _EXPORTS


_EXPORTS = """
EXPORT int llamac_pin(void *model, const uint32_t *processors)
{
  return llamac_pool_pin(((model_state *)model)->pool, processors) ? 13 : 0;
}

typedef struct {
  uint8_t *to;
  const uint8_t *from;
  size_t bytes;
} copy_args;

static void copy_share(const llamac_thread *th, void *argument)
{
  const copy_args *a = argument;
  size_t low, high;
  llamac_share(th, a->bytes, &low, &high);
  if (a->from != NULL) memcpy(a->to + low, a->from + low, high - low);
  else memset(a->to + low, 0, high - low);
}

EXPORT void llamac_copy(void *model, uint8_t *to, const uint8_t *from, uint64_t bytes)
{
  copy_args a = {to, from, bytes};
  llamac_pool_run(((model_state *)model)->pool, copy_share, &a);
}
"""
