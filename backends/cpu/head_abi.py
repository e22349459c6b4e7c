"""The part of the step ABI that hands out ranked logits: what `llamac_step_top` takes, checks and runs."""

from __future__ import annotations

TOP_STRUCT = """/* What llamac_step_top hands out for each row of logits. Rows of ids and values are `count` long,
   largest value first and the lower id first among equals. */
typedef struct {
  uint32_t count;                   /* 1 .. llamac_most_top() */
  int32_t *ids;
  float *values;
  const float *inverse_temperature; /* one a row; only read for sums */
  float *sums; /* one a row: the sum of exp((logit - largest) * inverse_temperature); may be NULL */
} llamac_top;
"""

TOP_HEADER = f"""{TOP_STRUCT}
/* The longest list of best logits that llamac_step_top gives. Both functions are missing from code whose head does not
   rank. */
uint32_t llamac_most_top(void);

/* As llamac_step, and ranks the logits of each row as they are computed. input->logits may be NULL: they are not
   written then. A row that holds a NaN has NaN as its first value; where it has fewer logits above -inf than `count`,
   the rest of its list is id -1. The same bits for any number of threads. */
int llamac_step_top(void *model, const llamac_step_input *input, const llamac_top *top);
"""


def exports(most: int) -> str:
    """The exported functions for lists of at most `most` entries; none where the head does not rank."""
    return f"\nenum {{ MOST_TOP = {most} }};\n\n{TOP_STRUCT}{_EXPORTS}" if most else ""


_EXPORTS = """
EXPORT uint32_t llamac_most_top(void) { return MOST_TOP; }

EXPORT int llamac_step_top(void *model, const llamac_step_input *in, const llamac_top *top)
{
  if (top->count == 0 || top->count > MOST_TOP || (top->sums != NULL && top->inverse_temperature == NULL)) return 12;
  const llamac_best best = {top->count, top->ids, top->values, top->inverse_temperature, top->sums};
  return run_step(model, in, best, step_top);
}
"""
