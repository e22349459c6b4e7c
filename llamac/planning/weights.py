"""The weights of a model as they lie on a device: one part for each packed matrix or vector, equal layers counted."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from llamac.models.llama.config import LlamaConfig
from llamac.models.llama.weights import expected_shapes
from llamac.passes.pipelines import Quantization

from .few_layers import image_shapes
from .formats import DENSE, ONNX, ONNX_PAGE, PANEL16, ROWS16, matrix_bytes, packed_format

ALIGNMENT = {PANEL16: 64, ROWS16: 256, ONNX: ONNX_PAGE}
"""Layout -> what the offset of each weight is a multiple of."""

ROLES = tuple("embedding,attention,cross-attention,mlp,experts,shared expert,router,norms,head,vision".split(","))
"""What weights are for, in the order of printing. A tied head is part of the embedding."""

JOINED = (("q", "k", "v"), ("gate", "up"))
"""Projections of one input that lie in one matrix where they have one format."""

OF_IMAGES = ("cross.k", "cross.v", "cross.k_norm")
"""Weights of the text layers that no step reads: they make cached keys and values of an image, once."""

Shape = tuple[int, ...]
Signature = tuple[tuple[str, Shape, str], ...]
"""A layer up to its index: the suffix, shape and encoding of every weight."""


@dataclass(frozen=True)
class Part:
    """`count` equal matrices (or vectors, which have one row) on one device.

    use: "product" (of every row), "lookup" (one row for each token), "head" (rows that need logits), "tied" (both of
    these), "image" (once for each image) or "vector". routed: the part of all experts that a token needs is that of
    the few it goes to. placed: bytes of one where the compiler has placed it, in any layout; 0 where they are counted.
    """

    role: str
    format: str
    rows: int
    columns: int
    use: str
    count: int = 1
    routed: bool = False
    placed: int = 0

    def bytes(self, layout: str) -> int:
        """Bytes of all `count` in a layout, each at its alignment."""
        unit = ALIGNMENT[layout]
        return self.count * -(-self.one(layout) // unit) * unit

    def one(self, layout: str) -> int:
        """Bytes of one."""
        if self.placed:
            return self.placed
        if self.use == "vector":
            return 4 * self.columns  # held in f32, the type of norms
        return matrix_bytes(self.format, self.rows, self.columns, layout)


def weight_parts(
    config: LlamaConfig, encodings: Mapping[str, str], quantization: Quantization, tp: int = 1
) -> tuple[Part, ...]:
    """The parts that a step reads, on one of `tp` devices: all but those of the image side.

    encodings: how the checkpoint stores each weight, by model-level name; the config's dtype where it says nothing.
    Heads, widths of MLPs and experts, and the head are divided; the embedding, norms and routers are not, nor a head
    whose rows the devices do not divide (`shard-tensors`).
    """
    layers: Counter[Signature] = Counter()
    outer: dict[str, Shape] = {}
    found: dict[str, list[tuple[str, Shape, str]]] = {}
    for name, shape in expected_shapes(config).items():
        if not name.startswith("layers."):
            outer[name] = shape
            continue
        _, index, suffix = name.split(".", 2)
        if suffix not in OF_IMAGES:
            found.setdefault(index, []).append((suffix, shape, encodings.get(name, config.dtype)))
    layers.update(tuple(rows) for rows in found.values())
    parts = [
        replace(part, count=count)
        for signature, count in layers.items()
        for part in _layer_parts(signature, config, quantization, tp)
    ]
    return (*_outer_parts(outer, config, encodings, quantization, tp), *parts)


def _layer_parts(signature: Signature, config: LlamaConfig, quantization: Quantization, tp: int) -> Iterator[Part]:
    matrices: dict[str, tuple[Shape, str]] = {}
    for suffix, shape, encoding in signature:
        if len(shape) == 1:
            yield Part("norms", "f32", 1, shape[0], "vector")
        else:
            form = packed_format(encoding, quantization, is_router=suffix == "moe.router")
            matrices[suffix] = _local(suffix, shape, config, tp), form
    for names in _joined(matrices):
        shape, form = matrices[names[0]]
        rows = sum(matrices[name][0][0] for name in names)
        routed = names[0] in ("moe.gate", "moe.up", "moe.down")
        yield Part(_role(names[0]), form, rows, shape[1], "product", routed=routed)


def _joined(matrices: Mapping[str, tuple[Shape, str]]) -> Iterator[tuple[str, ...]]:
    """Names of the matrices, those that lie in one together."""
    done: set[str] = set()
    for name in matrices:
        if name in done:
            continue
        place, _, last = name.rpartition(".")
        group = next((names for names in JOINED if last == names[0]), (last,))
        names = tuple(f"{place}.{part}" for part in group)
        alike = all(part in matrices and matrices[part][1] == matrices[name][1] for part in names)
        names = names if alike else (name,)
        done.update(names)
        yield names


def _role(suffix: str) -> str:
    if suffix.startswith("moe."):
        kinds = {"moe.router": "router", "moe.gate": "experts", "moe.up": "experts", "moe.down": "experts"}
        return kinds.get(suffix, "shared expert")
    return {"attn": "attention", "cross": "cross-attention"}.get(suffix.split(".")[0], "mlp")


def _local(suffix: str, shape: Shape, config: LlamaConfig, tp: int) -> Shape:
    """The largest share of a matrix that one of `tp` devices holds."""
    rows, columns = shape
    if tp == 1 or suffix == "moe.router":
        return shape
    if suffix.endswith((".k", ".v")):
        return max(config.kv_heads // tp, 1) * config.head_dim, columns
    if suffix.endswith((".o", ".down")):
        return rows, -(-columns // tp)
    return -(-rows // tp), columns


def _outer_parts(
    outer: Mapping[str, Shape], config: LlamaConfig, encodings: Mapping[str, str], quantization: Quantization, tp: int
) -> Iterator[Part]:
    use = {"embed": "tied" if config.tied_head else "lookup", "head": "head"}
    for name, shape in outer.items():
        if len(shape) == 1:
            yield Part("norms", "f32", 1, shape[0], "vector")
            continue
        form = packed_format(encodings.get(name, config.dtype), quantization, is_table=True)
        divided = tp > 1 and config.vocab_size % tp == 0
        if name == "embed" and config.tied_head and divided:
            yield Part("embedding", form, shape[0], shape[1], "lookup")
            yield Part("head", form, config.vocab_size // tp, shape[1], "head")
            continue
        rows = shape[0] // tp if name == "head" and divided else shape[0]
        yield Part("embedding" if name == "embed" else name, form, rows, shape[1], use[name])
    yield Part("norms", "f32", 1, config.head_dim // 2, "vector")  # the inverse frequencies of the rotation


def image_role(name: str, axes: int) -> str:
    """The role of a weight that the image side reads."""
    if not name.startswith("layers."):
        return "vision"
    return "norms" if axes == 1 else "cross-attention"


def counted_image_parts(
    config: LlamaConfig, encodings: Mapping[str, str], quantization: Quantization, tp: int = 1
) -> tuple[Part, ...]:
    """About the weights of the image side: matrices as they are stored, or in a float that is asked for.

    Devices share the heads of cross-attention; each has the whole encoder.
    """
    scheme = quantization if quantization.scheme in DENSE else Quantization()
    found: Counter[Part] = Counter()
    for name, shape in _image_weights(config, encodings).items():
        role, suffix = image_role(name, len(shape)), name.split(".", 2)[-1]
        if len(shape) == 1:
            found[Part(role, "f32", 1, shape[0], "image", placed=4 * shape[0])] += 1
            continue
        rows, columns = _local(suffix, shape, config, tp) if role == "cross-attention" else shape
        form = packed_format(encodings.get(name, config.dtype), scheme)
        found[Part(role, form, rows, columns, "image")] += 1
    return tuple(replace(part, count=count) for part, count in found.items())


def _image_weights(config: LlamaConfig, encodings: Mapping[str, str]) -> dict[str, Shape]:
    """The encoder's own weights, and those of the text model that take its result to the cache."""
    own = image_shapes(config, encodings)
    shapes = expected_shapes(config) if own else {}
    return own | {name: shape for name, shape in shapes.items() if name.split(".", 2)[-1] in OF_IMAGES}


def bytes_by_role(parts: tuple[Part, ...], layout: str) -> dict[str, int]:
    """Role -> bytes, in the order of `ROLES`, roles without weights left out."""
    sums: Counter[str] = Counter()
    for part in parts:
        sums[part.role] += part.bytes(layout)
    return {role: sums[role] for role in ROLES if sums[role]}


def parameters_by_role(config: LlamaConfig, encodings: Mapping[str, str]) -> dict[str, int]:
    """Role -> number of weights of the whole model."""
    sums: Counter[str] = Counter()
    for name, shape in (expected_shapes(config) | image_shapes(config, encodings)).items():
        sums[_role_of_weight(name, shape)] += math.prod(shape)
    return {role: sums[role] for role in ROLES if sums[role]}


def _role_of_weight(name: str, shape: Shape) -> str:
    if name.startswith("vision."):
        return "vision"
    if len(shape) == 1:
        return "norms"
    if name.startswith("layers."):
        return _role(name.split(".", 2)[2])
    return "embedding" if name == "embed" else name


def active_fraction(config: LlamaConfig, tokens: int) -> float:
    """The part of the experts that a step of `tokens` tokens is expected to need, were every choice equally likely."""
    if config.moe is None:
        return 1.0
    missed = 1 - config.moe.experts_per_token / config.moe.experts
    return float(1 - missed**tokens)


def active_parameters(config: LlamaConfig, encodings: Mapping[str, str]) -> int:
    """Weights of the text model that one token uses, both tables counted whole, as model cards count."""
    by_role = parameters_by_role(config, encodings)
    experts = round(by_role.get("experts", 0) * active_fraction(config, 1))
    return sum(n for role, n in by_role.items() if role not in ("experts", "vision")) + experts


def read_bytes(parts: tuple[Part, ...], config: LlamaConfig, layout: str, tokens: int) -> float:
    """Weight bytes that one step of `tokens` tokens reads: products once, looked-up rows one by one, no image."""
    fraction, total = active_fraction(config, tokens), 0.0
    for part in parts:
        if part.use == "lookup":
            total += tokens * (part.count * part.one(layout) // max(part.rows, 1))
        elif part.use != "image":
            total += part.count * part.one(layout) * (fraction if part.routed else 1)
    return total
