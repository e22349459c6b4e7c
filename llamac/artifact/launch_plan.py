"""The launch plan of a GPU target: which kernels a step runs, over which memory, as data that a driver follows.

Written by the compiler, read by the runtime (`launch_plan_file`), run by the plan simulator of the tests. Sizes and
grids that depend on the step are expressions over the plan's variables: an integer, a variable's name, or
`(operation, expression, expression)`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from llamac.errors import LlamacError

PLAN_VERSION = 1

Expression = int | str | tuple[str, "Expression", "Expression"]
"""An integer, a variable, or an operation on two expressions."""

OPERATIONS = ("add", "mul", "ceil_div", "min", "max")

TOKENS, ROWS, SEQUENCES, TABLE_WIDTH = "tokens", "rows", "sequences", "table_width"
"""Variables: rows of the step, rows whose logits are wanted, rows of the page tables, pages in a row of them."""

PAGES = "pages"
"""`pages.<cache>`: pages of a cache, the padding page not counted."""

IMAGE_ROWS, VISION_TOKENS = "image_rows", "vision_tokens"
"""Rows of pictures that a step puts among its tokens; vision tokens of the picture that the encoder works on."""

VARIABLES = (TOKENS, ROWS, SEQUENCES, TABLE_WIDTH, IMAGE_ROWS, VISION_TOKENS)
LARGEST = 1 << 62
"""What no size may exceed."""


def evaluate(expression: Expression, variables: Mapping[str, int]) -> int:
    """The value of an expression (LLC0714 for an unknown variable, a division by zero or a value that is too large)."""
    if isinstance(expression, int):
        return expression
    if isinstance(expression, str):
        if expression not in variables:
            raise LlamacError("LLC0714", "launch plan", f"the variable '{expression}' has no value here")
        return variables[expression]
    operation, left, right = expression
    a, b = evaluate(left, variables), evaluate(right, variables)
    if operation == "ceil_div" and b == 0:
        raise LlamacError("LLC0714", "launch plan", "an expression divides by zero")
    value = _OPERATE[operation](a, b)
    if not -LARGEST <= value <= LARGEST:
        raise LlamacError("LLC0714", "launch plan", "the value of an expression is too large")
    return value


_OPERATE: Mapping[str, Callable[[int, int], int]] = {
    "add": lambda a, b: a + b,
    "mul": lambda a, b: a * b,
    "ceil_div": lambda a, b: -(-a // b),
    "min": min,
    "max": max,
}


@dataclass(frozen=True)
class Pointer:
    """An address: `offset` bytes into the buffer called `buffer`."""

    buffer: str
    offset: int


Argument = Pointer | Expression
"""What a launch passes for one parameter: an address, or the value of an i32."""


@dataclass(frozen=True)
class KernelParameter:
    """One parameter: its name, and what is passed: `i32`, or a pointer to elements of a type, such as `*bf16`."""

    name: str
    type: str

    @property
    def is_pointer(self) -> bool:
        """Whether an address is passed: 8 bytes, else 4."""
        return self.type.startswith("*")


@dataclass(frozen=True)
class Kernel:
    """One compiled function: `name` in the artifact's member `member`.

    A block has warps * LaunchPlan.warp threads and needs `shared_bytes` of dynamic shared memory (above 48 KiB CUDA
    wants the attribute set). After `parameters` come two pointers, to `global_scratch_bytes` and
    `profile_scratch_bytes` of memory, null where those are 0. dependent_launch: launched with programmatic stream
    serialization (CUDA). source: the Triton function; constants: what it was specialised to, for people and simulators.
    """

    name: str
    member: str
    source: str
    parameters: tuple[KernelParameter, ...]
    constants: Mapping[str, int | float | str | bool | None]
    warps: int
    shared_bytes: int
    blocks_per_cluster: int = 1
    global_scratch_bytes: int = 0
    profile_scratch_bytes: int = 0
    dependent_launch: bool = False
    registers: int = 0
    spilled_bytes: int = 0


@dataclass(frozen=True)
class Launch:
    """One launch: kernel number, blocks in x, y and z, one argument a parameter. where: the model-level name."""

    kernel: int
    grid: tuple[Expression, Expression, Expression]
    arguments: tuple[Argument, ...]
    where: str


@dataclass(frozen=True)
class Meeting:
    """Where the ranks of a divided model meet, in front of launch number `at` of a list (behind all: its length).

    kind: `all_reduce` replaces rows x columns f32 values at `to`, which is `source`, by their sums over ranks;
    `all_gather` puts every rank's row of `columns` f32 values at `source` side by side into rows at `to`.
    """

    at: int
    kind: str
    source: Pointer
    to: Pointer
    rows: Expression
    columns: int
    where: str


MEETINGS = ("all_reduce", "all_gather")


@dataclass(frozen=True)
class Buffer:
    """Memory by name. bytes: its size. role:

    * `weights`: the artifact's member `member`, as it is.
    * `scratch`: anything; only written and read within a step. Its size is the largest of all buckets.
    * `counters`: zero before the first step; every step leaves it zero.
    * `cache`: key and value pages, `page_bytes` each, the padding page last.
    * `input`: i32 (or `type`) that the host writes before a step.
    * `output`: what the host may read after one.
    * `image_input`, `image_output`: as these two, for a run of the image encoder.

    tile_tokens: for `attention_tiles` only, see `attention_tiles`.
    """

    name: str
    role: str
    bytes: Expression
    type: str = "u8"
    member: str = ""
    page_bytes: int = 0
    tile_tokens: int = 0


ROLES = ("weights", "scratch", "counters", "cache", "input", "output", "image_input", "image_output")


@dataclass(frozen=True)
class Bucket:
    """The launches of a step of up to `tokens` tokens of which up to `rows` give logits.

    kind: `decode`, whose rows attend one by one, so any rows may be in it; the step is filled up to exactly `tokens`
    and `rows` with padding, so every launch of it can be replayed. `prefill`, whose rows attend in tiles of consecutive
    tokens of one sequence; it takes any number up to `tokens`. tails: what follows `launches` for the wanted result:
    `logits` (f32 [rows, vocab]), `greedy` (i32 [rows], the best token of each row), or `sample` (`chosen`, i32 [rows],
    tokens drawn as the input `sampling` says, and `sampled`, i32 [rows, SAMPLED_WORDS], what the host is told of them).
    """

    name: str
    kind: str
    tokens: int
    rows: int
    launches: tuple[Launch, ...]
    tails: Mapping[str, tuple[Launch, ...]]
    meetings: Mapping[str, tuple[Meeting, ...]] = field(default_factory=dict)
    """Of a divided model: those within `launches`, under that name, and within each tail."""

    @property
    def is_replayed(self) -> bool:
        """Whether every step has the same grids and scalars."""
        return self.kind == "decode"

    def steps(self, result: str) -> tuple[Launch, ...]:
        """All launches of a step that ends in `result`."""
        return self.launches + self.tails[result]


KINDS = ("decode", "prefill")
RESULTS = ("logits", "greedy", "sample")
NEEDED_RESULTS = ("logits", "greedy")
"""Tails that every bucket has; an older compiler's plan has no others."""

LISTED = 64
"""How many of the best logits of a row a step that samples tells of."""

SAMPLING_WORDS = 8
"""Words of a row of the input `sampling`, i32 [rows, 8]: see `runtime/gpu/sampling.py`."""

SAMPLED_WORDS = 4 + 2 * LISTED
"""Words of a row of the output `sampled`: id, log-probability, normalizer, mass, then ids and logits of the best."""


@dataclass(frozen=True)
class Encoder:
    """The launches of one run of the image encoder, over a tile or over all tiles of a picture.

    It takes the buffers `image_input`, and gives `image_output`, or vision tokens in the cache of these. most_rows: the
    most that VISION_TOKENS can be; grids depend on nothing else. shapes: of an encoder of whole pictures, how many
    tiles a picture of each aspect ratio has, 0 for the numbers that are none.
    """

    launches: tuple[Launch, ...]
    most_rows: int
    shapes: tuple[int, ...] = ()


@dataclass(frozen=True)
class LaunchPlan:
    """Everything that a driver must know of one GPU target.

    kind: `cuda` or `hip`. architecture: what the code was compiled for, `sm_90` or `gfx942`. code: `cubin` or `hsaco`,
    which run on just this architecture (`sm_90` code on compute capability 9.0 exactly), or `ptx`, which the driver
    compiles for any GPU of at least this architecture. warp: threads of a warp. toolkit: the CUDA release of the
    assembler or of the PTX version, which the driver must be as new as (same major release for cubin); "" for HIP.
    """

    target: str
    kind: str
    architecture: str
    code: str
    warp: int
    toolkit: str
    vocab: int
    page_tokens: int
    buffers: tuple[Buffer, ...]
    kernels: tuple[Kernel, ...]
    buckets: tuple[Bucket, ...]
    ranks: int = 1
    rank: int = 0
    """Of a divided model: 0 for the plan of the first rank, 1 for that of every other one, which adds no residual."""

    encoder: Encoder | None = None
    """Of a model that takes pictures."""

    def buffer(self, name: str) -> Buffer:
        """The buffer called `name` (LLC0714 when there is none)."""
        for found in self.buffers:
            if found.name == name:
                return found
        raise LlamacError("LLC0714", name, "the launch plan has no such buffer")

    def caches(self) -> list[Buffer]:
        """The caches, each with the page tables `page_tables<suffix>` of its name `cache<suffix>`."""
        return [b for b in self.buffers if b.role == "cache"]

    def all_launches(self) -> Iterator[tuple[Bucket, Launch]]:
        """Every launch of every bucket and tail."""
        for bucket in self.buckets:
            for launches in (bucket.launches, *bucket.tails.values()):
                for launch in launches:
                    yield bucket, launch

    def choose(self, tokens: int, rows: int, longest_run: int, pictures: bool = False) -> Bucket:
        """The bucket for a step (LLC0715 when it is larger than all).

        longest_run: most tokens of one sequence. Few rows attend one by one whatever they are. pictures: some rows are
        those of pictures, which only prefill buckets put in their places.
        """
        fits = [b for b in self.buckets if b.tokens >= tokens and b.rows >= rows]
        fits = [b for b in fits if not (pictures and b.is_replayed)]
        decode = [b for b in fits if b.kind == "decode" and (longest_run == 1 or b.tokens <= FEW_ROWS)]
        prefill = [b for b in fits if b.kind == "prefill"]
        for found in (decode, prefill, fits):
            if found:
                return min(found, key=lambda b: b.tokens)
        most = max(b.tokens for b in self.buckets)
        raise LlamacError("LLC0715", "step", f"{tokens} tokens with {rows} logit rows, at most {most} fit one step")


FEW_ROWS = 16
"""Rows up to which attending one by one costs no more than tiles would."""


def attention_tiles(sequence_of_token: list[int], tile_tokens: int) -> list[tuple[int, int]]:
    """(first token, tokens) of tiles of at most `tile_tokens` consecutive tokens of one sequence.

    The input `attention_tiles` of a prefill step is i32 [its bytes / 8, 2], filled up with (0, 0).
    """
    tiles: list[tuple[int, int]] = []
    for token, sequence in enumerate(sequence_of_token):
        first, count = tiles[-1] if tiles else (0, 0)
        if count and sequence_of_token[first] == sequence and count < tile_tokens:
            tiles[-1] = (first, count + 1)
        else:
            tiles.append((token, 1))
    return tiles
