"""The part of the step ABI of a divided model: how the ranks meet within a step."""

from __future__ import annotations

GROUP_STRUCT = """/* How the ranks of a divided model meet. Called by the thread that called llamac_step, while
   every thread of the model waits; all ranks come to the same calls in the same order. x and out hold `rows` rows.
   kind 0: out[row][column] becomes the sum of every rank's x, first to last, and of residual (NULL: none), of
   `columns` columns each; out may be x or residual. kind 1: rows of out are `columns` times the number of ranks wide,
   each rank has written its own columns there, and gets those of the others. Returns 0, or the step fails. */
typedef int (*llamac_exchange)(void *context, uint32_t kind, const float *x, const float *residual, float *out,
    uint64_t rows, uint64_t columns);
"""

HEADER = f"""{GROUP_STRUCT}
/* Makes the model number `rank` of its ranks, which `exchange` brings together; it is called with `context`. A model
   that is divided (targets[].ranks in the manifest) has to be told before its first step. Returns a status. */
int llamac_set_group(void *model, uint32_t rank, uint32_t ranks, llamac_exchange exchange, void *context);
"""


def declarations(ranks: int) -> str:
    """What the state of a model and the ops need."""
    return f"""
enum {{ RANKS = {ranks} }};

{GROUP_STRUCT}
typedef struct {{
  llamac_exchange exchange;
  void *context;
  uint32_t rank;
  int failed;
}} llamac_group;

/* One thread meets the other ranks; barriers around it are the caller's. */
static inline void llamac_meet(const llamac_thread *th, llamac_group *group, uint32_t kind, const float *x,
    const float *residual, float *out, uint64_t rows, uint64_t columns)
{{
  if (th->id == 0 && !group->failed)
    group->failed = group->exchange(group->context, kind, x, residual, out, rows, columns) != 0;
}}
"""


def exports() -> str:
    """The exported function."""
    return _EXPORTS


_EXPORTS = """
EXPORT int llamac_set_group(void *model, uint32_t rank, uint32_t ranks, llamac_exchange exchange, void *context)
{
  if (ranks != RANKS || rank >= ranks || exchange == NULL) return 15;
  ((model_state *)model)->group = (llamac_group){exchange, context, rank, 0};
  return 0;
}
"""
