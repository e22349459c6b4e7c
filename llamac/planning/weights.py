"""The weights of a model as they lie on a device: one part for each packed matrix or vector, equal layers counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from llamac.models.llama.config import LlamaConfig
from llamac.models.llama.vision_config import Llama4Vision
from llamac.models.llama.weights import expected_shapes
from llamac.models.llama4.vision_weights import expected_vision_shapes as llama4_shapes
from llamac.models.mllama.vision_weights import expected_vision_shapes as mllama_shapes
from llamac.passes.pipelines import Quantization

from .formats import PLAIN, matrix_bytes, packed_format

ALIGNMENT = 64
ROLES = tuple("embedding,attention,cross-attention,mlp,experts,shared expert,router,norms,head,vision".split(","))
"""What weights are for, in the order of printing. A tied head is part of the embedding."""

JOINED = (("q", "k", "v"), ("gate", "up"))
"""Projections of one input that lie in one matrix where they have one format."""

Shape = tuple[int, ...]
Signature = tuple[tuple[str, Shape, str], ...]
"""A layer up to its index: the suffix, shape and encoding of every weight."""


@dataclass(frozen=True)
class Part:
    """`count` equal matrices (or vectors, which have one row) on one device.

    use: "product" (of every row), "lookup" (one row for each token), "head" (rows that need logits), "tied" (both of
    these), "image" (once for each image) or "vector". routed: the part of all experts that a token needs is that of
    the few it goes to.
    """

    role: str
    format: str
    rows: int
    columns: int
    use: str
    count: int = 1
    routed: bool = False

    def bytes(self, layout: str) -> int:
        """Bytes of all `count` in a layout, each at its alignment."""
        return self.count * -(-self.one(layout) // ALIGNMENT) * ALIGNMENT

    def one(self, layout: str) -> int:
        """Bytes of one."""
        if self.use == "vector":
            return 4 * self.columns  # held in f32, the type of norms
        # How image encoders will be packed is open.
        return matrix_bytes(self.format, self.rows, self.columns, PLAIN if self.role == "vision" else layout)


def weight_parts(
    config: LlamaConfig, encodings: Mapping[str, str], quantization: Quantization, tp: int = 1
) -> tuple[Part, ...]:
    """The parts of the whole model on one of `tp` devices.

    encodings: how the checkpoint stores each weight, by model-level name; the config's dtype where it says nothing.
    Heads, widths of MLPs and experts, and the vocabulary are divided; norms, routers and the image encoder are not.
    """
    layers: Counter[Signature] = Counter()
    outer: dict[str, Shape] = {}
    found: dict[str, list[tuple[str, Shape, str]]] = {}
    for name, shape in expected_shapes(config).items():
        if not name.startswith("layers."):
            outer[name] = shape
            continue
        _, index, suffix = name.split(".", 2)
        found.setdefault(index, []).append((suffix, shape, encodings.get(name, config.dtype)))
    layers.update(tuple(rows) for rows in found.values())
    parts = [
        replace(part, count=count)
        for signature, count in layers.items()
        for part in _layer_parts(signature, config, quantization, tp)
    ]
    return (*_outer_parts(outer, config, encodings, quantization, tp), *parts, *_vision_parts(config, quantization))


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
        use = "image" if names[0] in ("cross.k", "cross.v") else "product"
        yield Part(_role(names[0]), form, rows, shape[1], use, routed=routed)


def _joined(matrices: Mapping[str, tuple[Shape, str]]) -> Iterator[tuple[str, ...]]:
    """Names of the matrices, those that lie in one together."""
    done: set[str] = set()
    for name in matrices:
        if name in done:
            continue
        place, _, last = name.rpartition(".")
        group = next((names for names in JOINED if last == names[0] and place != "cross"), (last,))
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
        yield Part("embedding" if name == "embed" else name, form, -(-shape[0] // tp), shape[1], use[name])
    yield Part("norms", "f32", 1, config.head_dim // 2, "vector")  # the inverse frequencies of the rotation


def _vision_parts(config: LlamaConfig, quantization: Quantization) -> Iterator[Part]:
    scheme, vision = quantization.scheme, config.vision
    if vision is None:
        return
    form = scheme if scheme in ("f32", "f16", "bf16") else config.dtype
    hidden = config.hidden_size
    shapes = llama4_shapes(vision, hidden) if isinstance(vision, Llama4Vision) else mllama_shapes(vision, hidden)
    for shape, count in Counter(shapes.values()).items():
        rows, columns = (1, *shape)[-2:]
        yield Part("vision", form, rows, columns, "image" if len(shape) == 2 else "vector", count)


def bytes_by_role(parts: tuple[Part, ...], layout: str) -> dict[str, int]:
    """Role -> bytes, in the order of `ROLES`, roles without weights left out."""
    sums: Counter[str] = Counter()
    for part in parts:
        sums[part.role] += part.bytes(layout)
    return {role: sums[role] for role in ROLES if sums[role]}


def parameters_by_role(config: LlamaConfig, encodings: Mapping[str, str]) -> dict[str, int]:
    """Role -> number of weights of the whole model."""
    sums: Counter[str] = Counter()
    for part in weight_parts(config, encodings, Quantization("f32")):
        sums[part.role] += part.count * part.rows * part.columns
    sums["norms"] -= config.head_dim // 2  # the frequencies follow from the config
    return {role: sums[role] for role in ROLES if sums[role]}


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
