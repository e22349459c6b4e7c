"""The config of an ONNX model: config.json or genai_config.json beside it, and what its graph says by itself.

genai_config.json has the sizes and neither the norm's epsilon nor the rotary base: those come from the graph, from the
attributes of its norms and from the table of sines (sin(f) at position 1 is the frequency f itself, told by its angle).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from llamac.errors import LlamacError

from ..hf_config import read_config, without_quantization
from ..input_files import read_json_object
from ..ledger import LedgerEntry, entry
from ..llama.config import LlamaConfig, RopeScaling, check_config, shape_name
from ..llama.graph import inverse_frequencies
from .config_from_graph import GraphFacts
from .proto import Node, OnnxModel
from .rotary_base import ROTATING, base_of, frequencies_of_table, sine_tables
from .signature import Signature, unlike
from .stored import ENCODINGS

HF_CONFIG, GENAI_CONFIG = "config.json", "genai_config.json"
_NORMS = ("SimplifiedLayerNormalization", "RMSNormalization", "com.microsoft.SkipSimplifiedLayerNormalization")
_PRODUCTS = ("MatMul", "Gemm", "com.microsoft.MatMulNBits")


def find_config(model: OnnxModel, sign: Signature) -> tuple[LlamaConfig, dict[str, object], list[LedgerEntry]]:
    """The architecture, what the config's file says about token ids, and ledger entries.

    Without a file the graph says it, or LLC0937.
    """
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
        facts = GraphFacts(model, sign)
        raw, config, ledger = {}, facts.config(_dtype(model, sign)), facts.ledger
    config = replace(config, dtype=_dtype(model, sign), rope_style=_rope_style(model, config))
    return check_config(config, model.file.name), raw, ledger


def _dtype(model: OnnxModel, sign: Signature) -> str:
    """The type in which the model works: that of its keys and values, or of its logits where it takes none."""
    kind = (sign.pasts or [sign.logits])[0].type
    if kind not in ENCODINGS:
        raise unlike(model, f"its keys have ONNX type {kind}")
    return ENCODINGS[kind]


def _rope_style(model: OnnxModel, config: LlamaConfig) -> str:
    for node in model.nodes:
        if node.key in ROTATING:
            return "interleaved" if node.attributes.get(ROTATING[node.key][1]) == 1 else "half_split"
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
    table = next(sine_tables(model), None)
    if table is None:
        raise unlike(model, "no node of it has a table of sines, and there is no config.json")
    frequencies = frequencies_of_table(table, model.file, config)
    theta = base_of(frequencies)
    config = replace(config, rope_theta=theta)
    expected = inverse_frequencies(config).astype(np.float64)
    ledger = [entry("default", f"{GENAI_CONFIG} rope", f"theta {theta:g}", "read from the model's table of sines")]
    if np.allclose(frequencies, expected, rtol=1e-5, atol=0):
        return config, ledger
    divisors = tuple(float(np.float32(d)) if abs(d - 1) > 1e-5 else 1.0 for d in expected / frequencies)
    what = f"divisors up to {max(divisors):.6g}"
    ledger.append(entry("default", f"{GENAI_CONFIG} rope scaling", what, "read from the model's table of sines"))
    return replace(config, rope_scaling=RopeScaling("divisors", divisors=divisors)), ledger
