"""The weights of Meta's shards put together: which rank holds which rows or columns, by the name of the tensor.

Attention heads and the width of the MLP are split over the ranks, so q, k, v, gate and up are joined by rows, o and
down by columns. Llama 4 stores q, k and v of a rank in one matrix, and the experts of a layer one below the other,
transposed (llama-models, checkpoint.py and the load hooks of llama4/).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NoReturn

from llamac.errors import LlamacError

from ..checkpoint import StoredTensor
from ..ledger import LedgerEntry, entry
from ..llama4 import vision_weights as llama4_vision
from ..matrix_view import Grid, MatrixView, below, joined, matrices_of, row_major
from ..mllama import vision_weights as mllama_vision
from ..mllama import weights as mllama
from ..name_table import MODEL
from ..torch_file import ENCODINGS, TorchFile, TorchTensor
from .config import LlamaConfig
from .vision_config import Llama4Vision, MllamaVision
from .weights import META

Views = Sequence[MatrixView]
"""The same tensor of every rank, in order."""

LAYER = re.compile(r"layers\.(0|[1-9]\d{0,3})\.(.+)")
IGNORED = re.compile(r"rope\.freqs|.*\._extra_state|.*\.expert_activation_DE|.*gate_stats_3E")
VISION = re.compile(r"vision_embeddings\..*|vision_projection\..*")
VISION_ROWS = re.compile(r".*(attn\.w[qkv]|mlp\.c_fc|conv1\._linear|vision_projection)\.(weight|bias)")
VISION_COLUMNS = re.compile(r".*(attn\.wo|mlp\.c_proj)\.weight")
"""How the ranks of an image encoder split it; norms, embeddings and the biases of sums are on every rank."""


def _first(views: Views) -> Grid:
    return [[views[0]]]


def _router(views: Views) -> Grid:
    return [[views[0].transposed]]


def _rows(views: Views) -> Grid:
    return below(views)


def _columns(views: Views) -> Grid:
    return [list(views)]


def _first_half(views: Views) -> Grid:
    return below(view.row_range(0, view.rows // 2) for view in views)


def _second_half(views: Views) -> Grid:
    return below(view.row_range(view.rows // 2, view.rows) for view in views)


Join = Callable[[Views], Grid]

OUTER: dict[str, tuple[str, Join]] = {
    "norm.weight": ("norm", _first),
    "output.weight": ("head", _rows),
}
LAYERED: dict[str, tuple[tuple[str, Join], ...]] = {
    "attention_norm.weight": (("attn_norm", _first),),
    "attention.wqkv.layer_norm_weight": (("attn_norm", _first),),
    "attention.wq.weight": (("attn.q", _rows),),
    "attention.wk.weight": (("attn.k", _rows),),
    "attention.wv.weight": (("attn.v", _rows),),
    "attention.wo.weight": (("attn.o", _columns),),
    "ffn_norm.weight": (("mlp_norm", _first),),
    "feed_forward.norm.weight": (("mlp_norm", _first),),
    "feed_forward.mlp.layer_norm_weight": (("mlp_norm", _first),),
    "feed_forward.w1.weight": (("mlp.gate", _rows),),
    "feed_forward.w2.weight": (("mlp.down", _columns),),
    "feed_forward.w3.weight": (("mlp.up", _rows),),
    "feed_forward.mlp.fc1_weight": (("mlp.gate", _first_half), ("mlp.up", _second_half)),
    "feed_forward.mlp.fc2_weight": (("mlp.down", _columns),),
    "feed_forward.w_in_shared_FD.weight": (("shared.gate", _rows),),
    "feed_forward.w_swiglu_FD.weight": (("shared.up", _rows),),
    "feed_forward.w_out_shared_DF.weight": (("shared.down", _columns),),
    "feed_forward.router_DE": (("moe.router", _router),),
}
"""Name in a layer -> the weights it holds (a shared expert without routed ones is the MLP), and how ranks are joined.

The fused matrix of q, k and v and the experts are in `MetaWeights`: their joints need the config.
"""
EXPERTS = {"moe_w_in_eD_F": "moe.gate", "moe_w_swiglu_eD_F": "moe.up", "moe_w_out_eF_D": "moe.down"}


class MetaWeights:
    """Reads the model-level weights of a config out of the shards.

    `config` is the given one; for a Guard 4 its MLP's width is the stored one.
    """

    def __init__(self, config: LlamaConfig, shards: Sequence[TorchFile], ledger: list[LedgerEntry]) -> None:
        self.shards = shards
        self.ledger = ledger
        self.config = config
        self._check_ranks()
        self.config = self._with_stored_width()

    def read(self) -> dict[str, StoredTensor]:
        """Every weight that the shards hold, by model-level name; LLC0207 for a tensor that is none."""
        found: dict[str, StoredTensor] = {}
        vision = 0
        for stored in self.shards[0].tensors:
            if IGNORED.fullmatch(stored):
                self.ledger.append(entry("ignored", stored[:120], stored[:120], "no weight: follows from params.json"))
            elif VISION.fullmatch(stored) and self.config.vision is None:
                vision += 1
            else:
                for name, grid in self._grids(stored):
                    if name in found:
                        reason = f"{stored} and {found[name].stored_name} are the same weight"
                        raise LlamacError("LLC0207", name, reason, "download the checkpoint again")
                    found[name] = self._weight(name, stored, grid)
        if vision:
            reason = "params.json has no vision_args: the text model is compiled alone"
            self.ledger.append(entry("note", "image encoder", f"{vision} weights are not read", reason))
        return found

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The weights of the image encoder, where there is one."""
        vision = self.config.vision
        if isinstance(vision, MllamaVision):
            return mllama_vision.expected_vision_shapes(vision, self.config.hidden_size, grids=True)
        if isinstance(vision, Llama4Vision):
            return llama4_vision.expected_vision_shapes(vision, self.config.hidden_size)
        return {}

    def _weight(self, name: str, stored: str, grid: Grid) -> StoredTensor:
        tensor = self.shards[0].tensors[stored]
        if tensor.dtype not in ENCODINGS:
            reason = f"{stored} in {tensor.file.name} is stored as {tensor.dtype}"
            raise LlamacError("LLC0209", name, reason, f"supported: {', '.join(ENCODINGS)}")
        return joined(name, stored, ENCODINGS[tensor.dtype], grid, vector=len(tensor.shape) == 1)

    def _ranks(self, stored: str) -> list[TorchTensor]:
        """The tensor in every shard: there, of one shape and one dtype."""
        found: list[TorchTensor] = []
        for shard in self.shards:
            tensor = shard.tensors.get(stored)
            if tensor is None:
                raise LlamacError("LLC0206", stored, f"{shard.path.name} does not hold it", "download the shard again")
            if found and (tensor.shape, tensor.dtype) != (found[0].shape, found[0].dtype):
                reason = f"it is {tensor.dtype} {list(tensor.shape)} in {shard.path.name} and not so in the first shard"
                raise LlamacError("LLC0223", stored, reason, "take every shard from one download")
            found.append(tensor)
        return found

    def _views(self, stored: str) -> list[MatrixView]:
        tensors = [_as_matrix(tensor) for tensor in self._ranks(stored)]
        if not 1 <= len(tensors[0].shape) <= 2:
            reason = f"{stored} has the shape {list(tensors[0].shape)}, expected a matrix or a vector"
            raise LlamacError("LLC0208", stored, reason, "download the checkpoint again")
        return [v for t in tensors for v in matrices_of(t.file, t.offset, t.shape, t.strides, t.item)]

    def _grids(self, stored: str) -> list[tuple[str, Grid]]:
        """The weights that a stored tensor holds, by model-level name, each with its pieces."""
        if self.config.architecture == "mllama":
            return self._mllama_grids(stored)
        if VISION.fullmatch(stored):
            name = llama4_vision.NAMES.translated(stored, META, MODEL)
            return [(name, self._encoder_grid(stored))] if name else self._unknown(stored)
        if stored == "tok_embeddings.weight":
            return [("embed", self._embedding(self._views(stored)))]
        if stored in OUTER:
            name, join = OUTER[stored]
            return [(name, join(self._views(stored)))]
        match = LAYER.fullmatch(stored)
        layer, suffix = (f"layers.{match.group(1)}", match.group(2)) if match else ("", stored)
        if suffix == "attention.wqkv.weight" and match:
            return self._fused_attention(layer, self._views(stored))
        if suffix.removeprefix("feed_forward.experts.") in EXPERTS and match:
            kind = suffix.removeprefix("feed_forward.experts.")
            return [(f"{layer}.{EXPERTS[kind]}", self._experts(layer, self._views(stored), kind == "moe_w_out_eF_D"))]
        if suffix not in LAYERED or not match:
            self._unknown(stored)
        place = "moe.shared." if self.config.is_moe(int(match.group(1))) else "mlp."
        views = self._views(stored)
        return [(f"{layer}.{re.sub('^shared[.]', place, name)}", join(views)) for name, join in LAYERED[suffix]]

    def _mllama_grids(self, stored: str) -> list[tuple[str, Grid]]:
        """A weight of Llama 3.2 Vision; the rows of `embed` beyond the vocabulary are a tensor of their own."""
        if stored == mllama.LEARNED_ROWS:
            return []
        name = mllama.model_name(stored, META, self.config)
        if name is None:
            self._unknown(stored)
        if not stored.startswith("text_model."):
            return [(name, self._encoder_grid(stored))]
        views = self._views(stored)
        if name == "embed":
            learned = self._views(mllama.LEARNED_ROWS) if mllama.LEARNED_ROWS in self.shards[0].tensors else []
            return [(name, [*_rows(views), *_rows(learned)])]
        suffix = re.sub(r"text_model\.((cross_attention_)?layers\.\d+\.)?", "", stored)
        return [(name, LAYERED.get(suffix, (OUTER.get(suffix, ("", _first)),))[0][1](views))]

    def _encoder_grid(self, stored: str) -> Grid:
        """A weight of an image encoder; the parts of a vector lie side by side."""
        views = self._views(stored)
        if VISION_COLUMNS.fullmatch(stored):
            return _columns(views)
        if not VISION_ROWS.fullmatch(stored):
            return _first(views)
        return _columns(views) if len(self.shards[0].tensors[stored].shape) == 1 else _rows(views)

    def _unknown(self, stored: str) -> NoReturn:
        reason = f"{stored[:120]} in {self.shards[0].path.name} is no weight of a Llama"
        raise LlamacError("LLC0207", stored[:120], reason, "compile a checkpoint of Llama 2, 3 or 4")

    def _embedding(self, views: Views) -> Grid:
        """Split by rows since Llama 3, by columns before."""
        by_columns = len(views) > 1 and views[0].columns * len(views) == self.config.hidden_size
        return _columns(views) if by_columns else _rows(views)

    def _fused_attention(self, layer: str, views: Views) -> list[tuple[str, Grid]]:
        """[q; k; v] of every rank."""
        c, ranks = self.config, len(views)
        sizes = [c.heads * c.head_dim // ranks, *[c.kv_heads * c.head_dim // ranks] * 2]
        if views[0].rows != sum(sizes):
            reason = f"attention.wqkv.weight has {views[0].rows} rows a rank, expected {sum(sizes)}"
            raise LlamacError("LLC0208", f"{layer}.attn", reason, "params.json belongs to another checkpoint")
        starts = (0, sizes[0], sizes[0] + sizes[1])
        return [
            (f"{layer}.attn.{name}", below(view.row_range(start, start + size) for view in views))
            for name, start, size in zip("qkv", starts, sizes, strict=True)
        ]

    def _experts(self, layer: str, views: Views, is_down: bool) -> Grid:
        """Experts below one another, each stored [in, out]: gate and up split by out, down by in."""
        count = self.config.moe.experts if self.config.moe else 0
        if not count or views[0].rows % count:
            reason = f"{views[0].rows} rows are no whole number of matrices for {count} experts"
            raise LlamacError("LLC0208", f"{layer}.moe", reason, "params.json belongs to another checkpoint")
        size = views[0].rows // count
        parts = [[v.row_range(e * size, (e + 1) * size).transposed for v in views] for e in range(count)]
        return parts if is_down else below(view for band in parts for view in band)

    def _check_ranks(self) -> None:
        """The columns of one o projection tell how many ranks there were."""
        prefix = "text_model." if self.config.architecture == "mllama" else ""
        wo = self.shards[0].tensors.get(f"{prefix}layers.0.attention.wo.weight")
        width = self.config.heads * self.config.head_dim
        if wo is None or len(wo.shape) != 2 or wo.shape[0] != self.config.hidden_size or not wo.shape[1]:
            return
        if wo.shape[1] * len(self.shards) == width or width % wo.shape[1]:
            return
        wanted, name = width // wo.shape[1], f"consolidated.{len(self.shards):02}.pth"
        if wanted > len(self.shards):
            reason = f"the checkpoint was saved in {wanted} shards, of which {len(self.shards)} are here"
            raise LlamacError("LLC0205", name, reason, "download the missing shards")
        reason = f"{len(self.shards)} shards are here, and each holds 1/{wanted} of the model"
        raise LlamacError("LLC0223", "layers.0.attn.o", reason, "remove the shards of the other checkpoint")

    def _with_stored_width(self) -> LlamaConfig:
        """Guard 4 keeps Scout's params.json and the width of its shared expert, which the formula does not give."""
        config = self.config
        shared = self.shards[0].tensors.get("layers.0.feed_forward.w_in_shared_FD.weight")
        if config.architecture != "llama4" or config.moe is not None or shared is None:
            return config
        width = shared.shape[0] * len(self.shards)
        if width != config.intermediate_size:
            reason = f"the width of the stored matrices; params.json gives {config.intermediate_size}"
            self.ledger.append(entry("note", "layers.N.mlp", f"width {width}", reason))
        return replace(config, intermediate_size=width)


def _as_matrix(tensor: TorchTensor) -> TorchTensor:
    """A table of tiles [high, wide, positions, width] as a row for each tile, a convolution as [out, everything]."""
    shape = mllama_vision.matrix_shape(".grid" if "embed" in tensor.name else "", tensor.shape)
    if shape == tensor.shape or tensor.strides != row_major(tensor.shape):
        return tensor
    return replace(tensor, shape=shape, strides=row_major(shape))
