"""What is tuned, as data: the kernels of models' steps, and for each the other ways to divide its work."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from llamac.artifact.launch_plan import Pointer, evaluate
from llamac.backends.gpu.architectures import Architecture, architecture
from llamac.backends.gpu.calls import Call, Slot, StepShape
from llamac.backends.gpu.launches import bucket_calls, buffers
from llamac.backends.gpu.request import Constant, KernelRequest
from llamac.backends.gpu.tuned_rows import CHOICES, chosen, key_of, shape_of
from llamac.driver import compile_graph
from llamac.models.checkpoint import Checkpoint
from llamac.models.sources import open_source
from llamac.passes.lower_kv_cache import PAGE
from llamac.passes.pipelines import parse_quantization

CONTEXT = 8192
"""Positions that attention sees: enough that memory is the limit."""

STEPS = (1, 4, 16, 64)
PREFILL = 2048
MODELS = ("llama-3.2-1b", "llama-3.2-3b", "llama-3.1-8b", "llama-3.1-70b", "llama-4-scout")
RECIPES = (("keep", "bf16"), ("fp8:fp8-activations", "fp8"), ("int4:g128", "bf16"))
TUNED = ("linear", "qkv", "attention", "moe", "head")
MOST_CANDIDATES = 6
"""Of one kernel, the cost model's choice counted: what is compiled travels, and time on a GPU is short."""


@dataclass(frozen=True)
class Candidate:
    """One way to divide the work of a kernel, and the blocks that it is launched over."""

    request: KernelRequest
    grid: tuple[int, int, int]
    choices: dict[str, int]


@dataclass(frozen=True)
class TuningCase:
    """A kernel at a shape: what a row is found by, the bytes behind each pointer, the scalars, what to try.

    candidates[0] is what the cost model chose; the others must give what it gives.
    """

    shape: dict[str, Constant]
    tokens: int
    is_prompt: bool
    context: int
    sizes: dict[str, int]
    scalars: dict[str, int]
    candidates: list[Candidate]


def model_cases(target: str, units: int, name: str, quantize: str, kv: str) -> Iterator[TuningCase]:
    """The cases of a model: a layer of each kind has all of its kernels."""
    source = open_source(name, random_weights=0)
    yield from checkpoint_cases(architecture(target), units, _few_layers(source), quantize, kv, (*STEPS, PREFILL))


def checkpoint_cases(
    machine: Architecture, units: int, source: Checkpoint, quantize: str, kv: str, steps: tuple[int, ...],
    context: int = CONTEXT,
) -> Iterator[TuningCase]:  # fmt: skip
    """The cases of a checkpoint: its kernels in steps of so many tokens, the last of them a prompt."""
    compiled = compile_graph(source, parse_quantization(quantize), kv, steps[-1], None, [], kind="gpu")
    found: set[str] = set()
    for tokens in steps:
        kind = "prefill" if tokens == steps[-1] else "decode"
        shape = StepShape(f"{kind}-{tokens}", kind, tokens, tokens, kind == "decode")
        bucket = bucket_calls(compiled.module, compiled.placed, machine, units, shape)
        width, sequences = -(-context // PAGE), 1 if kind == "prefill" else tokens
        variables = {"tokens": tokens, "rows": tokens, "sequences": sequences, "table_width": width}
        memory = {b.name: b.bytes for b in buffers(compiled.module, [bucket], "w", compiled.limits.weight_bytes)}
        pages = {f"pages.{name}": width * sequences for name in memory if name.startswith("cache")}
        sizes = {name: evaluate(size, variables | pages) for name, size in memory.items()}
        for call in [*bucket.body, *bucket.tails["greedy"]]:
            of_tokens = tokens if call.request.kernel == "decode_attention" else None
            shape_found = shape_of(call.request, of_tokens)
            is_tuned = "w_ptr" in call.request.signature or "cache_ptr" in call.request.signature
            if is_tuned and call.request.family in TUNED and key_of(shape_found) not in found:
                found.add(key_of(shape_found))
                candidates = [*_candidates(call, variables)]
                if len(candidates) > 1:
                    scalars = {n: evaluate(v, variables) for n, v in call.arguments.items() if _is_scalar(v)}
                    about = (shape_found, tokens, kind == "prefill", context)
                    yield TuningCase(*about, _sizes(call, sizes), scalars, candidates)


def _is_scalar(passed: object) -> bool:
    return not isinstance(passed, Slot | Pointer)


def _sizes(call: Call, buffers: dict[str, int]) -> dict[str, int]:
    """Bytes that may be touched behind each pointer."""
    found = {}
    for name, passed in call.arguments.items():
        if isinstance(passed, Slot):
            found[name] = passed.bytes
        elif isinstance(passed, Pointer):
            found[name] = buffers[passed.buffer] - passed.offset
    return found


def _few_layers(source: Checkpoint) -> Checkpoint:
    """The model with as many layers as it takes to have every kind of them; pictures are left out."""
    from llamac.models.random_weights import random_checkpoint

    config = replace(source.config, layers=4 if source.config.moe else 1, vision=None, cross_layers=())
    if config.moe is not None:
        config = replace(config, moe=replace(config.moe, layers=tuple(range(4))))
    if config.attention is not None:
        config = replace(config, attention=replace(config.attention, unrotated=(3,)))
    return random_checkpoint(config, 0)


def _candidates(call: Call, variables: dict[str, int]) -> Iterator[Candidate]:
    """The call as it is, then with one thing changed at a time: half and twice of it."""
    x, y, z = (*(evaluate(size, variables) for size in call.grid), 1, 1)[:3]
    own = {n: int(v) for n, v in call.request.constants.items() if n in CHOICES and isinstance(v, int)}
    yield Candidate(call.request, (x, y, z), own)
    made = 1
    options = call.request.options
    tries: list[tuple[dict[str, int], int, int]] = []
    name = "BN" if "BN" in own else "BP" if "BP" in own else "KEYS" if "KEYS" in own else ""
    if "BM" not in own and name:
        tries += [({**own, name: own[name] * 2}, options.warps, options.stages)]
        tries += [({**own, name: own[name] // 2}, options.warps, options.stages)] if own[name] > 1 else []
    if "BK" in own and "BM" in own:
        tries += [({**own, "BK": own["BK"] // 2}, options.warps, options.stages)]
    tries += [(own, options.warps * 2, options.stages)] if options.warps < 8 else [(own, 4, options.stages)]
    if "BM" in own or "KEYS" in own:
        tries += [(own, options.warps, options.stages + 1), (own, options.warps, max(1, options.stages - 1))]
    for choices, warps, stages in tries:
        grid = _grid(call, own, choices, (x, y, z))
        if made < MOST_CANDIDATES and grid is not None:
            made += 1
            yield Candidate(chosen(call.request, choices, warps, stages), grid, choices)


def _grid(
    call: Call, own: dict[str, int], choices: dict[str, int], grid: tuple[int, int, int]
) -> tuple[int, int, int] | None:
    """The blocks after a change of one size; None where the kernel cannot be divided so."""
    constants = call.request.constants
    if choices.get("BP", 1) != own.get("BP", 1):
        half = int(constants["HEAD"] or 0) // 2
        if constants.get("QK_EPS", -1.0) != -1.0 or half % choices["BP"]:
            return None
        return (grid[0] * own["BP"] // choices["BP"], *grid[1:]) if "BM" not in own else None
    if choices.get("BN", 1) != own.get("BN", 1):
        if call.request.kernel == "decode_best":
            return None  # its partner merges so many tiles
        return (-(-int(constants["N"] or 0) // choices["BN"]), *grid[1:])
    if choices.get("KEYS", 1) != own.get("KEYS", 1):
        chunk, page = int(constants["CHUNK"] or 0), int(constants["PAGE"] or 0)
        if page % choices["KEYS"] or chunk % choices["KEYS"] or choices["KEYS"] < 16:
            return None
    return grid
