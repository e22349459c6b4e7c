"""The weights of a Hugging Face folder put in their places: which stored tensors make which weight of the model.

A module of the checkpoint holds `weight`, or the parts of a quantized one; a fused tensor of experts holds two weights;
experts stored one by one make one weight together.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NoReturn

from llamac.errors import LlamacError

from .checkpoint import StoredTensor
from .ledger import LedgerEntry, entry
from .llama.config import LlamaConfig
from .llama.vision_config import Llama4Vision, MllamaVision
from .llama.weights import HF, model_name, model_place
from .llama4 import vision_weights as llama4_vision
from .matrix_view import Grid, MatrixView, below, joined, matrices_of, row_major
from .mllama import vision_weights as mllama_vision
from .mllama import weights as mllama
from .name_table import MODEL, LayerNames, NameTable
from .safetensors_header import DTYPE_BITS, HeaderTensor

ENCODINGS: dict[str, str] = {
    "F32": "f32",
    "F16": "f16",
    "BF16": "bf16",
    "F8_E4M3": "e4m3fn",
    "I8": "i8",
    "U8": "u8",
    "I32": "i32",
}
WEIGHT_ENCODINGS = ("F32", "F16", "BF16", "F8_E4M3")
"""What a weight that is not quantized may be stored as; the others occur in parts of quantized ones."""

LLAMA4_MODULES = NameTable(
    outer=(),
    layers=(
        LayerNames(
            ("layers.", "model.layers.", ""),
            (
                ("mlp.gate", "feed_forward.gate_proj", ""),
                ("mlp.up", "feed_forward.up_proj", ""),
                ("mlp.down", "feed_forward.down_proj", ""),
                ("moe.router", "feed_forward.router", ""),
                ("moe.shared.gate", "feed_forward.shared_expert.gate_proj", ""),
                ("moe.shared.up", "feed_forward.shared_expert.up_proj", ""),
                ("moe.shared.down", "feed_forward.shared_expert.down_proj", ""),
            ),
        ),
    ),
)
"""What Llama 4 calls otherwise than Llama: its MLPs."""

KINDS = {"llama": "dense Llama", "llama4": "Llama 4", "mllama": "Llama 3.2 Vision"}
"""Architecture -> what messages call it."""

CACHE_SCALES = ("k_scale", "v_scale", "q_scale", "kv_scale", "prob_scale")
"""Tensors of quantized checkpoints that belong to the cache, not to a weight."""
FUSED = re.compile(
    r"model\.layers\.(\d{1,6})\.feed_forward\.experts\.(gate_up_proj|down_proj)(_scale|_weight_scale|_input_scale)?"
)
EXPERT = re.compile(r"model\.layers\.(\d{1,6})\.feed_forward\.experts\.(\d{1,6})\.(gate|up|down)_proj")


@dataclass(frozen=True)
class LocatedTensor:
    """A tensor of some file. `stored` is its full name there, `name` the one without the prefixes of image models."""

    stored: str
    name: str
    header: HeaderTensor
    file: Path

    def matrices(self) -> list[MatrixView]:
        """Its matrices: one, or one for each expert."""
        h = self.header
        return list(matrices_of(self.file, h.offset, h.shape, row_major(h.shape), DTYPE_BITS[h.dtype] // 8))


@dataclass
class WeightParts:
    """What is stored of one weight, by the name of the part (`weight`, or those of a quantized one)."""

    name: str
    tensors: dict[str, LocatedTensor] = field(default_factory=dict)
    grids: dict[str, Grid] = field(default_factory=dict)

    def add(self, part: str, tensor: LocatedTensor, grid: Grid) -> None:
        """Enter a part; LLC0204 when it is there already."""
        if part in self.tensors:
            reason = f"{tensor.stored[:120]} and {self.tensors[part].stored[:120]} are the same weight"
            raise LlamacError("LLC0204", self.name, reason, "download the checkpoint again")
        self.tensors[part], self.grids[part] = tensor, grid

    def stored(self, part: str, name: str) -> StoredTensor:
        """A part as a tensor called `name`."""
        tensor = self.tensors[part]
        is_vector = len(tensor.header.shape) == 1
        return joined(name, tensor.stored, ENCODINGS[tensor.header.dtype], self.grids[part], vector=is_vector)


def bare_name(stored: str) -> str:
    """A stored name without the prefixes under which image models keep their text model."""
    name = stored
    if re.match(r"model\.(language_model|vision_model|multi_modal_projector)\.", name):
        name = name.removeprefix("model.")
    if name.startswith("language_model."):
        name = name.removeprefix("language_model.")
        return name if name.startswith(("model.", "lm_head.")) else f"model.{name}"
    return name


class HfWeights:
    """Sorts located tensors into the parts of weights."""

    def __init__(self, config: LlamaConfig, ledger: list[LedgerEntry], quantized: bool = False) -> None:
        self.config = config
        self.ledger = ledger
        self.quantized = quantized
        self.weights: dict[str, WeightParts] = {}
        self._experts: dict[tuple[str, str], dict[int, LocatedTensor]] = {}

    def sort(self, tensors: Iterable[LocatedTensor]) -> dict[str, WeightParts]:
        """Every weight that the tensors make, by model-level name; LLC0207 for a tensor that belongs to none."""
        for tensor in tensors:
            if not self._is_left_out(tensor):
                self._place(tensor)
        for (name, part), experts in self._experts.items():
            self._join_experts(name, part, experts)
        return self.weights

    def _is_left_out(self, tensor: LocatedTensor) -> bool:
        """Known to be unneeded: rotary frequencies, and a head that the config ties to the embedding."""
        if tensor.name.endswith("rotary_emb.inv_freq"):
            place, reason = model_place(tensor.name, HF), "rotary frequencies follow from the config"
        elif tensor.name.startswith("lm_head.") and self.config.tied_head:
            place, reason = "head", "tie_word_embeddings is true: the head is the embedding table"
        elif self.quantized and tensor.name.rpartition(".")[2] in CACHE_SCALES:
            place, reason = model_place(tensor.name, HF), "the scale of a quantized key-value cache; see --kv"
        elif self.quantized and FUSED.fullmatch(tensor.name) and tensor.name.endswith("_input_scale"):
            place, reason = model_place(tensor.name, HF), "the scale of activations, which follow --quantize"
        else:
            return False
        self.ledger.append(entry("ignored", place, tensor.stored[:120], reason))
        return True

    def _place(self, tensor: LocatedTensor) -> None:
        if self.config.architecture == "mllama":
            self._place_mllama(tensor)
            return
        vision = self._vision_name(tensor.name)
        if vision is not None:
            self._part(vision, "weight", tensor, [tensor.matrices()])
            return
        fused = FUSED.fullmatch(tensor.name)
        if fused and self.config.is_moe(int(fused.group(1))):
            place, kind = f"layers.{fused.group(1)}.moe", fused.group(2)
            (self._fused_scales if fused.group(3) else self._fused_experts)(tensor, place, kind)
            return
        module, _, part = tensor.name.rpartition(".")
        one = EXPERT.fullmatch(module)
        if one and self.config.is_moe(int(one.group(1))):
            experts = self._experts.setdefault((f"layers.{one.group(1)}.moe.{one.group(3)}", part), {})
            experts[int(one.group(2))] = tensor
            return
        name = self._module_name(module)
        if name is None or (part == "bias" and not self.quantized):
            self._unknown(tensor)
        self._part(name, part, tensor, below(tensor.matrices()))

    def _place_mllama(self, tensor: LocatedTensor) -> None:
        """Names that carry layer numbers and biases of their own; a convolution is the matrix that it is."""
        name, part = mllama.model_name(tensor.stored, HF, self.config), "weight"
        if name is None and self.quantized:
            module, _, part = tensor.stored.rpartition(".")
            name = mllama.model_name(f"{module}.weight", HF, self.config)
        if name is None:
            self._unknown(tensor)
        shape = mllama_vision.matrix_shape(name, tensor.header.shape)
        matrix = replace(tensor, header=replace(tensor.header, shape=shape))
        self._part(name, part, matrix, below(matrix.matrices()))

    def _part(self, name: str, part: str, tensor: LocatedTensor, grid: Grid) -> None:
        self.weights.setdefault(name, WeightParts(name)).add(part, tensor, grid)

    def _module_name(self, module: str) -> str | None:
        """Model-level name of the weight of a module."""
        if self.config.architecture == "llama4":
            found = LLAMA4_MODULES.translated(module, HF, MODEL)
            if found is not None:
                return found
            return None if ".mlp." in module else model_name(f"{module}.weight", HF)
        return model_name(f"{module}.weight", HF)

    def _vision_name(self, name: str) -> str | None:
        if isinstance(self.config.vision, Llama4Vision):
            return llama4_vision.NAMES.translated(name, HF, MODEL)
        return None

    def _fused_experts(self, tensor: LocatedTensor, place: str, kind: str) -> None:
        """gate_up_proj [E, in, 2 out] and down_proj [E, in, out]."""
        views = tensor.matrices()
        if len(tensor.header.shape) != 3:
            reason = f"{tensor.stored} has the shape {list(tensor.header.shape)}, expected a matrix for each expert"
            raise LlamacError("LLC0208", place, reason, "the config belongs to another checkpoint, or is damaged")
        if kind == "down_proj":
            self._part(f"{place}.down", "weight", tensor, below(v.transposed for v in views))
            return
        half = views[0].columns // 2
        self._part(f"{place}.gate", "weight", tensor, below(v.column_range(0, half).transposed for v in views))
        self._part(f"{place}.up", "weight", tensor, below(v.column_range(half, v.columns).transposed for v in views))

    def _expert_outputs(self, name: str) -> int:
        """Outputs of one expert's matrix in `layers.N.moe.KIND`."""
        assert self.config.moe is not None
        return self.config.hidden_size if name.endswith("down") else self.config.moe.intermediate_size

    def _fused_scales(self, tensor: LocatedTensor, place: str, kind: str) -> None:
        """Scales of fused experts: one for each output, one for each expert, or one for all of a layer."""
        inner = self._expert_outputs(f"{place}.gate")
        outputs = self._expert_outputs(f"{place}.down") if kind == "down_proj" else 2 * inner
        columns = self._scale_columns(tensor, place, outputs)
        upright = replace(tensor, header=replace(tensor.header, shape=(len(columns) * columns[0].rows, 1)))
        if kind == "down_proj" or columns[0].rows == 1:
            names = ("down",) if kind == "down_proj" else ("gate", "up")
            for name in names:
                self._part(f"{place}.{name}", "weight_scale", upright, below(columns))
            return
        self._part(f"{place}.gate", "weight_scale", upright, below(c.row_range(0, inner) for c in columns))
        self._part(f"{place}.up", "weight_scale", upright, below(c.row_range(inner, c.rows) for c in columns))

    def _scale_columns(self, tensor: LocatedTensor, place: str, outputs: int) -> list[MatrixView]:
        """A column of numbers for each expert, wherever axes of one lie: [E, 1, out], [E, out, 1], [E, out] or [E].

        A single number stays one. LLC0208 for any other shape.
        """
        assert self.config.moe is not None
        h, experts = tensor.header, self.config.moe.experts
        item = DTYPE_BITS[h.dtype] // 8
        sizes = tuple(size for size in h.shape if size != 1)
        if not sizes:
            return [MatrixView(tensor.file, h.offset, 1, 1, item, item)]
        if sizes not in ((experts,), (experts, outputs)):
            reason = f"{tensor.stored[:120]} has the shape {list(h.shape)}, expected scales of {experts} experts"
            raise LlamacError("LLC0208", place, reason, "the config belongs to another checkpoint, or is damaged")
        step = item if len(sizes) == 2 else 0
        each = outputs * item if len(sizes) == 2 else item
        return [MatrixView(tensor.file, h.offset + e * each, outputs, 1, step, item) for e in range(experts)]

    def _join_experts(self, name: str, part: str, experts: Mapping[int, LocatedTensor]) -> None:
        """The matrices of all experts below one another; every expert must be there."""
        count = self.config.moe.experts if self.config.moe else 0
        missing = [index for index in range(count) if index not in experts]
        if missing:
            others = f" (and {len(missing) - 1} others)" if len(missing) > 1 else ""
            reason = f"the {part} of expert {missing[0]}{others} is missing"
            raise LlamacError("LLC0206", name, reason, "download the checkpoint again")
        if len(experts) > count:
            reason = f"{experts[max(experts)].stored[:120]} belongs to none of {count} experts"
            raise LlamacError("LLC0207", name, reason, "the config belongs to another checkpoint")
        first = experts[0]
        odd = next((t for t in experts.values() if t.header.dtype != first.header.dtype), None)
        if odd is not None:
            reason = f"{odd.stored[:120]} is stored as {odd.header.dtype}, other experts as {first.header.dtype}"
            raise LlamacError("LLC0209", name, reason, "convert the checkpoint again")
        views = [view for index in range(count) for view in experts[index].matrices()]
        if part == "weight_scale" and all((view.rows, view.columns) == (1, 1) for view in views):
            # One number for a matrix: it counts for each of its outputs.
            first = replace(first, header=replace(first.header, shape=(1, 1)))
            views = [replace(view, rows=self._expert_outputs(name), row_stride=0) for view in views]
        self._part(name, part, first, below(views))

    def _unknown(self, tensor: LocatedTensor) -> NoReturn:
        kind = KINDS[self.config.architecture]
        reason = f"{tensor.stored[:120]} in {tensor.file.name} is no weight of a {kind}"
        hint = "compile a plain dense Llama checkpoint" if kind == "dense Llama" else f"compile a checkpoint of {kind}"
        raise LlamacError("LLC0207", model_place(tensor.name, HF), reason, hint)


def plain_weight(weight: WeightParts) -> StoredTensor:
    """A weight that is stored as it is; LLC0207 for parts of a quantized one, LLC0209 for an unknown type."""
    extra = next((part for part in weight.tensors if part != "weight"), None)
    if extra is not None:
        tensor = weight.tensors[extra]
        reason = f"{tensor.stored[:120]} in {tensor.file.name} belongs to a quantized weight, and the config names none"
        raise LlamacError("LLC0207", weight.name, reason, "take the config.json that belongs to these files")
    tensor = weight.tensors["weight"]
    if tensor.header.dtype not in WEIGHT_ENCODINGS:
        reason = f"{tensor.stored} in {tensor.file.name} is stored as {tensor.header.dtype}"
        raise LlamacError("LLC0209", weight.name, reason, f"supported: {', '.join(WEIGHT_ENCODINGS)}")
    return weight.stored("weight", weight.name)


def vision_shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """The weights of the image encoder, where the config has one."""
    if isinstance(config.vision, Llama4Vision):
        return llama4_vision.expected_vision_shapes(config.vision, config.hidden_size)
    if isinstance(config.vision, MllamaVision):
        return mllama_vision.expected_vision_shapes(config.vision, config.hidden_size)
    return {}
