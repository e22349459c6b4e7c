"""Quantized weights: every scheme and every GGUF block type, against what their values mean.

Three comparisons, each as tight as its cause allows:

* Float activations (f32, f16, bf16, fp8): f32 arithmetic throughout, so 1e-5 of transformers on the dequantized
weights. * Integer weights, code against the kernel-level interpreter: the same int8 activations, so rows agree to 5e-6,
except
  where an f32 difference in the last bit moves one activation over a rounding boundary. Such a flip is rare and changes
  a logit by a fraction of a percent: most short sequences must be without one, and none may be far off.
* Integer weights against transformers on the dequantized weights: int8 activations cost a few percent of the largest
  logit at these widths (random weights of width 72 average nothing out), which is what is allowed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from interpreted import Floats, captured_logits, kernel_graph, kernel_logits_of
from stepping import side_by_side
from tiny_gguf import SHAPE_32, SHAPE_256, TinyGguf, write_tiny_gguf
from tiny_llama import TinyShape, make_reference, reference_logits, relative_error, save_checkpoint, some_ids

import llamac
from llamac.ir.evaluator import WeightEvaluator
from llamac.models.checkpoint import Checkpoint
from llamac.models.llama.graph import build_llama
from llamac.models.sources import open_source
from llamac.passes.pipelines import WIDE, optimize_model, parse_quantization, plain_layers, quantize, raise_and_fuse
from llamac.transform.base import PassContext
from llamac.transform.matrices import matrices
from llamac.transform.pipeline import run_pipeline

TOLERANCE_F32 = 1e-5
TOLERANCE_ROW = 5e-6
TOLERANCE_FLIP = 3e-2
TOLERANCE_INT8_ACTIVATIONS = 8e-2
TOLERANCE_BF16_ACTIVATIONS = 2.5e-2
MOST = 0.7
"""Share of short sequences in which no activation may be rounded another way."""

SHAPE = TinyShape(group=4, head_dim=16, dtype="f32", width=72, inner=100, vocab=131, layers=2, scaled=True)
"""Widths that no group divides: the last group of every row is padded."""

FLOAT_SCHEMES = ["f16", "bf16", "fp8"]
INTEGER_SCHEMES = [
    f"{kind}{group}{asym}" for kind in ("int8", "int4") for group in ("", ":g64", ":g128") for asym in ("", ":asym")
]
TYPES = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K", "F16", "BF16", "F32"]
FLOAT_TYPES = {"F16", "BF16", "F32"}


def _prompts(vocab: int) -> list[list[int]]:
    """Sequences of three ids, so that a flip in one leaves the others alone, and a longer one."""
    short = np.random.default_rng(0).integers(0, vocab, (24, 3))
    return [*short.tolist(), some_ids(vocab, 40, 99)]


def _code_logits(source: Path, scheme: str, folder: Path) -> list[Floats]:
    artifact = folder / "model.llamac"
    llamac.compile(source, output=artifact, quantize=scheme, kv="f32", tokenizer=False, validate=False)
    prompts = _prompts(131)
    with llamac.load(artifact, threads=2, context=256, sequences=len(prompts)) as model:
        return side_by_side(model, prompts, [[] for _ in prompts])


def _check_against_kernel_graph(checkpoint: Checkpoint, scheme: str, found: list[Floats]) -> None:
    expected = kernel_logits_of(checkpoint, kernel_graph(checkpoint, scheme, "f32"), _prompts(131))
    errors = [relative_error(f, e) for f, e in zip(found, expected, strict=True)]
    tight = sum(error <= TOLERANCE_ROW for error in errors[:-1]) / (len(errors) - 1)
    print(f"{scheme}: {tight:.0%} of short sequences without a flip, worst {max(errors):.1e}")
    assert tight >= MOST, f"only {tight:.0%} of the short sequences agree within {TOLERANCE_ROW}: {errors}"
    assert max(errors) <= TOLERANCE_FLIP, errors


def _error_against(reference: Any, found: list[Floats]) -> float:
    expected = [reference_logits(reference, prompt) for prompt in _prompts(131)]
    return relative_error(np.concatenate(found), np.concatenate(expected))


def _check_against(reference: Any, found: list[Floats], tolerance: float) -> None:
    error = _error_against(reference, found)
    print(f"against transformers on the same values: {error:.1e}")
    assert error <= tolerance


# --quantize


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(make_reference(SHAPE), SHAPE, tmp_path_factory.mktemp("source"))


def _quantized_weights(checkpoint: Checkpoint, scheme: str) -> dict[str, Floats]:
    """Model-level name -> the values that the scheme leaves of each weight matrix."""
    module = build_llama(checkpoint.config, checkpoint.tensors)
    steps = [
        *raise_and_fuse(plain_layers(checkpoint.config.layers)),
        *optimize_model(plain_layers(checkpoint.config.layers)),
        *quantize(parse_quantization(scheme)),
    ]
    run_pipeline(module, steps, PassContext(checkpoint.read_rows, []))
    evaluator = WeightEvaluator(checkpoint.read_rows)
    found = {weight.name: np.asarray(evaluator.whole(weight), np.float32) for weight in matrices(module, "all")}
    names = [name for name, tensor in checkpoint.tensors.items() if len(tensor.shape) == 2]
    values = {name: [v for key, v in found.items() if key == name or key.startswith(f"{name}.")] for name in names}
    assert len(found) == len(names) and all(len(v) == 1 for v in values.values()), sorted(found)
    return {name: v[0] for name, v in values.items()}


def _reference_of(weights: dict[str, Floats], checkpoint: Checkpoint) -> Any:
    import torch

    reference = make_reference(SHAPE)
    state = reference.state_dict()
    for name, values in weights.items():
        state[checkpoint.tensors[name].stored_name].copy_(torch.from_numpy(values))
    return reference


def _original(checkpoint: Checkpoint, name: str) -> Floats:
    rows = checkpoint.tensors[name].rows
    return np.ascontiguousarray(checkpoint.read_rows(name, 0, rows)).view(np.float32)


@pytest.mark.parametrize("scheme", FLOAT_SCHEMES)
def test_float_schemes(source: Path, tmp_path: Path, scheme: str) -> None:
    checkpoint = open_source(source)
    weights = _quantized_weights(checkpoint, scheme)
    for name, values in weights.items():
        _check_float_values(values, _original(checkpoint, name), "f32" if _stays(scheme, name) else scheme)
    wide = scheme if scheme == "f16" else f"{scheme}{WIDE}"
    _check_against(_reference_of(weights, checkpoint), _code_logits(source, wide, tmp_path), TOLERANCE_F32)
    if wide != scheme:
        found = _code_logits(source, scheme, tmp_path)
        _check_against(_reference_of(weights, checkpoint), found, TOLERANCE_BF16_ACTIVATIONS)


def _stays(scheme: str, name: str) -> bool:
    return scheme == "fp8" and name in ("embed", "head")


def _check_float_values(values: Floats, original: Floats, scheme: str) -> None:
    """Rounded to nearest: off by half a unit in the last place of the dtype, or less; fp8 after scaling rows to 448."""
    half_unit = {"f32": 0.0, "f16": 2.0**-11, "bf16": 2.0**-8, "fp8": 2.0**-4}[scheme]
    peak = np.abs(original).max(axis=1, keepdims=True)
    smallest = {"f32": 0.0, "f16": 2.0**-25, "bf16": 0.0, "fp8": peak / 448 * 2.0**-10}[scheme]
    assert (np.abs(values - original) <= np.maximum(np.abs(original) * half_unit, smallest) * 1.001).all()
    assert scheme == "f32" or not np.array_equal(values, original)


@pytest.mark.parametrize("scheme", INTEGER_SCHEMES)
def test_integer_schemes(source: Path, tmp_path: Path, scheme: str) -> None:
    checkpoint = open_source(source)
    weights = _quantized_weights(checkpoint, scheme)
    for name, values in weights.items():
        table = name in ("embed", "head") and scheme.startswith("int4")
        _check_groups(values, _original(checkpoint, name), "int8" if table else scheme)
    found = _code_logits(source, scheme, tmp_path)
    _check_against_kernel_graph(checkpoint, scheme, found)
    _check_against(_reference_of(weights, checkpoint), found, TOLERANCE_INT8_ACTIVATIONS)


def _check_groups(values: Floats, original: Floats, scheme: str) -> None:
    """Each value near its own, counted in steps of its group's range, and few levels a group."""
    q = parse_quantization(scheme)
    columns = original.shape[1]
    for start in range(0, columns, q.group):
        part, kept = original[:, start : start + q.group], values[:, start : start + q.group]
        peak = np.abs(part).max(axis=1, keepdims=True)
        spread = np.maximum(part.max(axis=1, keepdims=True), 0) - np.minimum(part.min(axis=1, keepdims=True), 0)
        # int4 has one step more below zero than above, and a fitted scale: the ends of a group may be cut off by more
        # than a step, as long as its values together are no further away than with the largest at -8.
        steps, most = {
            ("int8", False): (peak / 127, 0.6),
            ("int8", True): (spread / 255, 0.7),
            ("int4", False): (peak / 8, 2.0),
            ("int4", True): (spread / 15, 0.52),
        }[q.scheme, q.asymmetric]
        assert (np.abs(kept - part) <= steps * most + 1e-7).all()
        assert q.scheme == "int8" or max(len(np.unique(row)) for row in kept) <= 16
        if (q.scheme, q.asymmetric) == ("int4", False):
            assert (np.linalg.norm(kept - part, axis=1) <= _plain_error(part) * 1.01 + 1e-3 * peak[:, 0]).all()


def _plain_error(part: Floats) -> Floats:
    """The error of each row, a group, when its largest element becomes -8."""
    scale = np.take_along_axis(part, np.abs(part).argmax(axis=1)[:, None], axis=1) / -8
    scale = np.where(scale == 0, 1, scale)
    return np.linalg.norm(np.clip(np.rint(part / scale), -8, 7) * scale - part, axis=1)


# GGUF


@pytest.fixture(scope="module")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`tiny_gguf(type)`: a file with every matrix in that type."""

    def make(name: str) -> TinyGguf:
        shape = SHAPE_256 if name.endswith("_K") else SHAPE_32
        return write_tiny_gguf(tmp_path_factory.mktemp(name) / "tiny.gguf", shape, lambda tensor: Type[name])

    return make


@pytest.mark.parametrize("kind", TYPES)
def test_gguf_types(tiny_gguf: Any, tmp_path: Path, kind: str) -> None:
    tiny = tiny_gguf(kind)
    checkpoint = open_source(tiny.path)
    _check_captured(checkpoint, tiny)
    if kind in FLOAT_TYPES:
        _check_against(tiny.reference, _code_logits(tiny.path, f"keep{WIDE}", tmp_path), TOLERANCE_F32)
        return
    found = _code_logits(tiny.path, "keep", tmp_path)
    _check_against_kernel_graph(checkpoint, "keep", found)
    _check_against(tiny.reference, found, TOLERANCE_INT8_ACTIVATIONS)


@pytest.mark.parametrize(
    "kind", [k if k in ("Q4_1", "Q6_K") else pytest.param(k, marks=pytest.mark.slow) for k in TYPES]
)
def test_gguf_types_in_f32(tiny_gguf: Any, tmp_path: Path, kind: str) -> None:
    """The same values as f32: everything but the activations' rounding, to 1e-5."""
    tiny = tiny_gguf(kind)
    _check_against(tiny.reference, _code_logits(tiny.path, "f32", tmp_path), TOLERANCE_F32)


def _check_captured(checkpoint: Checkpoint, tiny: TinyGguf) -> None:
    ids = some_ids(131, 40)
    error = relative_error(captured_logits(checkpoint, ids), reference_logits(tiny.reference, ids))
    assert error <= TOLERANCE_F32


def _q4_k_m(name: str) -> Type:
    """Which types llama.cpp's Q4_K_M gives: more bits for the head, and for v and down of some layers."""
    if name == "output.weight" or name in ("blk.0.attn_v.weight", "blk.0.ffn_down.weight"):
        return Type.Q6_K
    return Type.Q4_K


def _motley(name: str) -> Type:
    """No two alike in a layer: nothing can be fused, no layer equals another."""
    types = [Type.Q4_0, Type.Q8_0, Type.F16, Type.Q5_1, Type.Q4_1, Type.BF16, Type.Q5_0, Type.F32]
    return types[sum(map(ord, name)) % len(types)]


@pytest.mark.parametrize(
    ("shape", "kind_of"), [(SHAPE_256, _q4_k_m), (SHAPE_32, _motley)], ids=["Q4_K_M", "every type in one file"]
)
def test_mixed_gguf(tmp_path: Path, shape: TinyShape, kind_of: Any) -> None:
    tiny = write_tiny_gguf(tmp_path / "tiny.gguf", shape, kind_of)
    checkpoint = open_source(tiny.path)
    _check_captured(checkpoint, tiny)
    found = _code_logits(tiny.path, "keep", tmp_path)
    _check_against_kernel_graph(checkpoint, "keep", found)
    _check_against(tiny.reference, found, TOLERANCE_INT8_ACTIVATIONS)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_gguf_rope_divisors(tmp_path: Path, tied: bool) -> None:
    """llama3 scaling as GGUF has it, in `rope_freqs.weight`, against transformers' own; with and without a head."""
    shape = TinyShape(**{**SHAPE_32.__dict__, "tied": tied})
    tiny = write_tiny_gguf(tmp_path / "tiny.gguf", shape, lambda name: Type.F32, llama3=True)
    checkpoint = open_source(tiny.path)
    assert checkpoint.config.rope_scaling is not None and checkpoint.config.tied_head == tied
    _check_captured(checkpoint, tiny)
    _check_against(tiny.reference, _code_logits(tiny.path, "keep", tmp_path), TOLERANCE_F32)


@pytest.mark.slow
def test_gguf_bytes_do_not_depend_on_memory(tiny_gguf: Any, tmp_path: Path) -> None:
    """Rows of q and k are reordered inside heads of 64: blocks of rows must not cut what belongs together."""
    tiny = tiny_gguf("Q4_K")
    made = []
    for memory in (1 << 30, 1 << 20, 1 << 12):
        path = tmp_path / f"{memory}.llamac"
        llamac.compile(tiny.path, output=path, memory=memory, tokenizer=False)
        made.append(path.read_bytes())
    assert made[0] == made[1] == made[2]
