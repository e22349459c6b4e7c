"""The config of an ONNX model: config.json or genai_config.json beside it, and what its graph says by itself.

genai_config.json has the sizes and neither the norm's epsilon nor the rotary base: those come from the graph, from the
attributes of its norms and from the table of sines (sin(f) at position 1 is the frequency f itself, told by its angle).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llamac.errors import LlamacError

from ..hf_config import read_config, without_quantization
from ..input_files import read_json_object
from ..ledger import LedgerEntry, entry
from ..llama.config import LlamaConfig, RopeScaling, check_config, shape_name
from ..llama.graph import inverse_frequencies
from .proto import FLOAT, Node, OnnxModel, TensorProto
from .signature import Signature, unlike
from .stored import ENCODINGS, locate

HF_CONFIG, GENAI_CONFIG = "config.json", "genai_config.json"
_ROTATING = {
    "com.microsoft.GroupQueryAttention": (8, "rotary_interleaved"),
    "com.microsoft.RotaryEmbedding": (3, "interleaved"),
}
_NORMS = ("SimplifiedLayerNormalization", "RMSNormalization", "com.microsoft.SkipSimplifiedLayerNormalization")
_PRODUCTS = ("MatMul", "Gemm", "com.microsoft.MatMulNBits")
THETA_ERROR = 4e-6
"""Of the base that such frequencies tell. Bases are round numbers: the shortest within it is meant."""
FREQUENCY_ERROR = 2.0**-22
"""Of a frequency that is read from a table in f32."""


def find_config(model: OnnxModel, sign: Signature) -> tuple[LlamaConfig, dict[str, object], list[LedgerEntry]]:
    """The architecture, what the config's file says about token ids, and ledger entries; LLC0937 when none is there."""
    folder = model.file.parent
    if (folder / HF_CONFIG).is_file():
        raw = read_json_object(folder / HF_CONFIG)
        config, ledger = read_config(without_quantization(raw))
        if config.architecture != "llama":
            raise unlike(
                model, f"its config.json is that of a {config.architecture}, and only dense Llamas are imported"
            )
    elif (folder / GENAI_CONFIG).is_file():
        raw, config, ledger = _genai(model, sign, folder)
    else:
        reason = f"neither {HF_CONFIG} nor {GENAI_CONFIG} is beside it, which say how many heads there are"
        raise unlike(model, reason)
    config = replace(config, dtype=_dtype(model, sign), rope_style=_rope_style(model, config))
    return check_config(config, model.file.name), raw, ledger


def _dtype(model: OnnxModel, sign: Signature) -> str:
    """The type in which the model works: that of its keys and values."""
    kind = sign.pasts[0].type
    if kind not in ENCODINGS:
        raise unlike(model, f"its keys have ONNX type {kind}")
    return ENCODINGS[kind]


def _rope_style(model: OnnxModel, config: LlamaConfig) -> str:
    for node in model.nodes:
        if node.key in _ROTATING:
            return "interleaved" if node.attributes.get(_ROTATING[node.key][1]) == 1 else "half_split"
    return config.rope_style


# genai_config.json.


def _genai(model: OnnxModel, sign: Signature, folder: Path) -> tuple[dict[str, object], LlamaConfig, list[LedgerEntry]]:
    raw = read_json_object(folder / GENAI_CONFIG)
    inside = raw.get("model")
    decoder = inside.get("decoder") if isinstance(inside, Mapping) else None
    if not isinstance(inside, Mapping) or not isinstance(decoder, Mapping):
        raise LlamacError("LLC0303", GENAI_CONFIG, "it has no model.decoder", "build the folder again")
    if inside.get("type") != "llama":
        reason = f"model.type is {str(inside.get('type'))[:40]!r}"
        raise LlamacError("LLC0301", GENAI_CONFIG, reason, "only Llama is imported from ONNX")
    layers, heads = _size(decoder, "num_hidden_layers"), _size(decoder, "num_attention_heads")
    hidden, head_dim = _size(decoder, "hidden_size"), _size(decoder, "head_size")
    config = LlamaConfig(
        name="",
        hidden_size=hidden,
        intermediate_size=_intermediate(model, layers),
        layers=layers,
        heads=heads,
        kv_heads=_size(decoder, "num_key_value_heads"),
        head_dim=head_dim,
        vocab_size=_size(inside, "vocab_size"),
        rms_norm_eps=_epsilon(model),
        rope_theta=10000.0,
        rope_scaling=None,
        context_length=_size(inside, "context_length"),
        tied_head=False,
        dtype=_dtype(model, sign),
        rope_style="half_split",
    )
    config = check_config(config, GENAI_CONFIG)
    config, ledger = _with_rotary(model, config)
    config = replace(config, name=shape_name(config.parameters))
    return {key: inside[key] for key in ("bos_token_id", "eos_token_id") if key in inside}, config, ledger


def _size(raw: Mapping[str, object], key: str) -> int:
    value = raw.get(key)
    if not isinstance(value, int) or isinstance(value, bool):
        raise LlamacError(
            "LLC0302", f"{GENAI_CONFIG} {key}", f"is {str(value)[:40]}, expected a number", "build it again"
        )
    return value


def _intermediate(model: OnnxModel, layers: int) -> int:
    """The inputs of a layer's last product."""
    widths = [width for node in model.nodes if (width := _inputs_of(model, node)) is not None]
    each = (len(widths) - 1) // layers if layers > 0 else 0
    if not widths or each not in (5, 7):
        raise unlike(model, f"it has {len(widths)} products with weights in {layers} layers")
    return widths[each - 1]


def _inputs_of(model: OnnxModel, node: Node) -> int | None:
    """The inputs of a product with a stored matrix."""
    if node.key not in _PRODUCTS or len(node.inputs) < 2:
        return None
    if node.key.endswith("NBits"):
        found = node.attributes.get("K")
        return found if isinstance(found, int) else None
    matrix = model.tensors.get(node.inputs[1])
    if matrix is None or len(matrix.shape) != 2:
        return None
    return matrix.shape[1 if node.attributes.get("transB") == 1 else 0]


def _epsilon(model: OnnxModel) -> float:
    for node in model.nodes:
        if node.key in _NORMS:
            found = node.attributes.get("epsilon", 1e-5)
            if isinstance(found, float):
                return float(f"{found:.6g}")
    raise unlike(model, "no node of it is a norm that names its epsilon, and there is no config.json")


# The rotary base from a table of sines.


def _with_rotary(model: OnnxModel, config: LlamaConfig) -> tuple[LlamaConfig, list[LedgerEntry]]:
    table = next(_sines(model), None)
    if table is None:
        raise unlike(model, "no node of it has a table of sines, and there is no config.json")
    frequencies = _frequencies(table, model.file, config)
    theta = _base(frequencies)
    config = replace(config, rope_theta=theta)
    expected = inverse_frequencies(config).astype(np.float64)
    ledger = [entry("default", f"{GENAI_CONFIG} rope", f"theta {theta:g}", "read from the model's table of sines")]
    if np.allclose(frequencies, expected, rtol=1e-5, atol=0):
        return config, ledger
    divisors = tuple(float(np.float32(d)) if abs(d - 1) > 1e-5 else 1.0 for d in expected / frequencies)
    what = f"divisors up to {max(divisors):.6g}"
    ledger.append(entry("default", f"{GENAI_CONFIG} rope scaling", what, "read from the model's table of sines"))
    return replace(config, rope_scaling=RopeScaling("divisors", divisors=divisors)), ledger


def _sines(model: OnnxModel) -> Iterator[TensorProto]:
    for node in model.nodes:
        place = _ROTATING.get(node.key, (0, ""))[0]
        if place and place < len(node.inputs) and node.inputs[place] in model.tensors:
            yield model.tensors[node.inputs[place]]


def _frequencies(table: TensorProto, file: Path, config: LlamaConfig) -> NDArray[np.float64]:
    """The frequencies that a table has: angles at position 1, in (0, 1], made sharper by later positions."""
    half = config.head_dim // 2
    if len(table.shape) != 2 or table.shape[0] < 2 or table.shape[1] != half or table.type != FLOAT:
        reason = f"a table of sines of shape {list(table.shape)}, expected float32 [positions, {half}]"
        raise LlamacError("LLC0937", table.name, reason, "put the model's config.json beside it")
    stored = locate(table, file)
    rows = min(table.shape[0], 4096)
    sines = replace(stored, shape=(rows, half)).read(rows * half).astype(np.float64)
    frequency: NDArray[np.float64] = np.arcsin(np.clip(sines[1], -1, 1))
    position = 2
    while position < rows:
        turns = frequency * position
        near = np.arcsin(np.clip(sines[position], -1, 1))
        candidates = np.stack([near + 2 * np.pi * np.round((turns - near) / (2 * np.pi)),
                               np.pi - near + 2 * np.pi * np.round((turns - np.pi + near) / (2 * np.pi))])  # fmt: skip
        best = np.take_along_axis(candidates, np.abs(candidates - turns).argmin(axis=0)[None], 0)[0]
        is_steep = np.abs(sines[position]) < 0.9
        frequency = np.where(is_steep, best / position, frequency)
        position *= 2
    return np.asarray(frequency, np.float64)


def _base(frequencies: NDArray[np.float64]) -> float:
    """theta: frequency i is theta ** (-2i / head size) as far as no scaling touches it, which is for the first ones.

    Each of them tells theta, the later the better; the first that contradicts those before it is a scaled one.
    """
    half = len(frequencies)
    if half < 2 or not (0 < frequencies[1] < 1 and math.isclose(frequencies[0], 1, rel_tol=1e-5)):
        raise LlamacError(
            "LLC0937", GENAI_CONFIG, "the table of sines is none of rotary frequencies", "add config.json"
        )
    theta = float(frequencies[1]) ** -float(half)
    for index in range(2, half):
        told = float(frequencies[index]) ** (-half / index)
        if not math.isclose(told, theta, rel_tol=half / (index - 1) * FREQUENCY_ERROR):
            break
        theta = told
    shortest = (float(f"{theta:.{digits}g}") for digits in range(1, 12))
    return next((number for number in shortest if math.isclose(number, theta, rel_tol=THETA_ERROR)), theta)
