"""The part of a code member that says where time goes: the table of ops, and the functions that give their times."""

from __future__ import annotations

from collections.abc import Sequence

from .op_table import ProfiledOp

OP_STRUCT = """/* What an op is, and the work that a call of it does. */
typedef struct {
  const char *function, *kind, *name, *detail;
  uint64_t weight_bytes; /* weights that a call reads; with experts those of all */
  uint64_t token_bytes;  /* and what it reads or writes besides for each token */
  uint64_t key_bytes;    /* and for each key of a sequence that it attends to */
  uint64_t operations;   /* multiplications and additions; for what, says `per` */
  uint32_t per;          /* 0 each call, 1 each token, 2 each row of logits, 3 each token and key */
  uint32_t unit;         /* what computes them: 0 nothing of note, 1 int8, 2 bf16, 3 f32 */
  uint32_t cache;        /* the cache whose keys count */
  uint32_t experts;      /* 0, or how many share the weights */
  uint32_t chosen;       /* of them, how many a token chooses */
} llamac_op;
"""

ROW_STRUCT = """/* What an op took: calls, how long they ran, and how long the thread then waited for the others. */
typedef struct {
  uint64_t calls, nanoseconds, waited;
} llamac_profile_row;
"""

HEADER = f"""{OP_STRUCT}
{ROW_STRUCT}
/* The ops of this code: points `ops` at their table, and returns how many there are. */
uint32_t llamac_ops(const llamac_op **ops);

/* Writes what each op took since the last call (`capacity` rows, as many as there are ops, or 0), forgets it, and
   measures from now on if `on`. The times are those of the calling thread, which does an equal share of every op. */
void llamac_profile(void *model, int on, llamac_profile_row *rows, uint32_t capacity);

/* The most operations a second that a unit (1 int8, 2 bf16, 3 f32) reaches on the threads of the model; 0: it has no
   such unit. Measured now, in a few milliseconds. */
double llamac_peak(void *model, uint32_t unit);
"""


def table(ops: Sequence[ProfiledOp]) -> str:
    """The table of ops, which the state of a model needs to know the size of."""
    rows = "\n".join(op.c_row() for op in ops)
    head = f"\nenum {{ OPS = {len(ops)} }};\n\n{OP_STRUCT}\n"
    return f"{head}static const llamac_op op_table[OPS + 1] = {{\n{rows}\n}};\n"


def exports() -> str:
    """The exported functions."""
    return _EXPORTS


_EXPORTS = """
EXPORT uint32_t llamac_ops(const llamac_op **ops)
{
  *ops = op_table;
  return OPS;
}

EXPORT void llamac_profile(void *model, int on, llamac_profile_row *rows, uint32_t capacity)
{
  model_state *m = model;
  if (capacity >= OPS) memcpy(rows, m->profile_rows, OPS * sizeof *rows);
  memset(m->profile_rows, 0, sizeof m->profile_rows);
  m->profile = (llamac_profile_state){.rows = m->profile_rows};
  m->is_profiled = on;
}

EXPORT double llamac_peak(void *model, uint32_t unit)
{
  return llamac_peak_of(((model_state *)model)->pool, unit);
}
"""
