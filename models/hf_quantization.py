"""Quantized Hugging Face checkpoints: which tensors make a quantized weight, told from what is stored.

The config says which method made the checkpoint; every matrix says by its own tensors how it is stored: what has a
scale is quantized, what has none is not, and shapes and types give the group, the bits and the symmetry. What the
config says besides (activations, caches) is noted, and what would change the weights is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np

from llamac.errors import LlamacError
from llamac.ir.dtypes import DTYPES

from .checkpoint import FileRows, StoredTensor, assembled
from .hf_weights import ENCODINGS, WEIGHT_ENCODINGS, WeightParts, plain_weight
from .input_files import read_json_object
from .ledger import LedgerEntry, entry
from .llama.config_keys import ConfigKeys, short
from .matrix_view import Grid, MatrixView
from .packed_encoding import KERNEL_GROUPS, PackedEncoding, packed_tensor

WHERE = "config.json quantization_config"
METHODS = ("fbgemm_fp8", "compressed-tensors", "gptq", "awq", "modelopt", "fp8")
SCALES = ("f32", "bf16", "f16")
NOT_READ = frozenset(
    {
        "weight_shape",
        "input_scale",
        "input_zero_point",
        "input_scale_ub",
        "g_idx",
        "weight_g_idx",
        "bias",
        "pre_quant_scale",
    }
)
"""Parts that hold nothing of the weight: sizes known otherwise, activations, and (checked) the order of groups."""
PRE_SCALE = "pre_quant_scale"
KEEP = "use a checkpoint of one of the methods that are read, or the one that is not quantized"


@dataclass(frozen=True)
class HfQuantization:
    """What a config says about the quantization of a checkpoint."""

    method: str
    bits: int = 0
    group: int = 0
    symmetric: bool = True
    gptq_offset: bool = True


def read_quantization(raw: Mapping[str, object], directory: Path, ledger: list[LedgerEntry]) -> HfQuantization | None:
    """The quantization that config.json (or ModelOpt's hf_quant_config.json) names, None when there is none.

    Raises LLC0222 for a method that is not read, or one whose weights cannot be multiplied as they are.
    """
    value = raw.get("quantization_config", raw.get("compression_config"))
    if value is None and (directory / "hf_quant_config.json").is_file():
        value = read_json_object(directory / "hf_quant_config.json").get("quantization")
        value = {**value, "quant_method": "modelopt"} if isinstance(value, Mapping) else value
    text = raw.get("text_config")
    if value is None and isinstance(text, Mapping):
        value = text.get("quantization_config")
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise LlamacError("LLC0303", WHERE, f"it is {short(value)}, expected an object", "correct the config")
    method = value.get("quant_method", "compressed-tensors" if "config_groups" in value else None)
    if method not in METHODS:
        _refuse(f"the method {short(method)} is not read")
    _note_activations(value, ledger)
    if method == "gptq":
        return _gptq(ConfigKeys(value, WHERE, ledger, "the default of GPTQ"))
    if method == "awq":
        return _awq(ConfigKeys(value, WHERE, ledger, "the default of AWQ"))
    if method == "compressed-tensors":
        _check_compressed(value)
    if method == "modelopt" and value.get("quant_algo") not in ("FP8", "FP8_PER_CHANNEL_PER_TOKEN", "W4A16_AWQ"):
        _refuse(f"ModelOpt's {short(value.get('quant_algo'))} is not read")
    if method == "modelopt" and value.get("has_zero_point"):
        _refuse("ModelOpt's W4A16_AWQ with zero points is not read")
    if value.get("weight_block_size") is not None:
        _refuse("one scale for a block of rows and columns is not supported")
    return HfQuantization(str(method))


def _refuse(reason: str) -> NoReturn:
    raise LlamacError(
        "LLC0222", WHERE, reason, f"methods that are read: {', '.join(METHODS)}; {KEEP.split(', or ')[1]}"
    )


def _note_activations(value: Mapping[str, object], ledger: list[LedgerEntry]) -> None:
    """What a checkpoint wants done to activations and caches: the compiler has its own ways."""
    wanted = {
        "activation_scale_ub": "activations clipped to",
        "activation_scheme": "activations quantized",
        "kv_cache_scheme": "the key-value cache quantized",
        "kv_cache_quant_algo": "the key-value cache quantized as",
    }
    for key, what in wanted.items():
        if value.get(key) is not None:
            reason = "the weights are kept as they are; activations and cache follow --quantize and --kv"
            ledger.append(entry("note", f"{WHERE} {key}", f"{what} {short(value[key])}", reason))
    groups = value.get("config_groups")
    for name, group in groups.items() if isinstance(groups, Mapping) else ():
        if isinstance(group, Mapping) and group.get("input_activations") is not None:
            reason = "the weights are kept as they are; activations follow --quantize"
            ledger.append(entry("note", f"{WHERE} {str(name)[:60]}", "activations quantized", reason))


def _gptq(keys: ConfigKeys) -> HfQuantization:
    bits, group = keys.integer("bits", 4), keys.integer("group_size", 128, least=-1)
    if bits not in (4, 8):
        _refuse(f"GPTQ with {bits} bits is not supported (4 and 8 are)")
    if keys.raw.get("dynamic"):
        _refuse("GPTQ with other settings for some modules ('dynamic') is not supported")
    form = keys.raw.get("checkpoint_format", "gptq")
    if form not in ("gptq", "gptq_v2"):
        _refuse(f"GPTQ's checkpoint_format {short(form)} is not read")
    return HfQuantization("gptq", bits, max(group, 0), keys.flag("sym", True), form == "gptq")


def _awq(keys: ConfigKeys) -> HfQuantization:
    version = keys.raw.get("version", "gemm")
    if not isinstance(version, str) or version.lower() != "gemm":
        _refuse(f"AWQ's version {short(version)} is not read (gemm is)")
    if keys.integer("bits", 4) != 4 or not keys.flag("zero_point", True):
        _refuse("AWQ without zero points, or with other than 4 bits, is not supported")
    return HfQuantization("awq", 4, max(keys.integer("group_size", 128, least=-1), 0), False)


def _check_compressed(value: Mapping[str, object]) -> None:
    for key in ("transform_config", "sparsity_config"):
        found = value.get(key)
        if isinstance(found, Mapping) and found and found.get("format", "") not in ("dense", None):
            _refuse(f"{key} is given: weights that are rotated or sparse are not supported")
    if value.get("format") in ("marlin-24", "nvfp4-pack-quantized", "mxfp4-pack-quantized", "mxfp8-quantized"):
        _refuse(f"the format {short(value['format'])} is not read")


class QuantizedWeights:
    """Makes the weights of a quantized checkpoint; whatever is not quantized in it is read as it is."""

    def __init__(self, quantization: HfQuantization, shapes: Mapping[str, tuple[int, ...]], ledger: list[LedgerEntry]):
        self.quantization = quantization
        self.shapes = shapes
        self.ledger = ledger
        self.plain: list[str] = []

    def weight(self, parts: WeightParts) -> StoredTensor:
        """One weight: LLC0206 for a part that is missing, LLC0207 and LLC0209 for one that does not belong."""
        name, found = parts.name, set(parts.tensors)
        if found == {"weight"} and parts.tensors["weight"].header.dtype in WEIGHT_ENCODINGS[:3]:
            if len(self.shapes.get(name, ())) == 2 and name.startswith("layers."):
                self.plain.append(name)
            return plain_weight(parts)
        if name not in self.shapes:
            stored = next(iter(parts.tensors.values()))
            reason = f"{stored.stored[:120]} in {stored.file.name} has no place in the model"
            raise LlamacError("LLC0207", name, reason, "the config belongs to another checkpoint")
        self._check_bias(parts)
        encoding, names = self._layout(parts)
        unknown = sorted(found - NOT_READ - set(names.values()))
        if unknown:
            reason = f"{parts.tensors[unknown[0]].stored[:120]} is no part of a {self.quantization.method} weight"
            raise LlamacError("LLC0207", name, reason, KEEP)
        self._check_group_order(parts, encoding)
        return packed_tensor(name, self.shapes[name], encoding, self._parts(parts, encoding, names))

    def finish(self) -> None:
        """One ledger entry for the matrices that the checkpoint leaves unquantized."""
        if self.plain:
            others = f" and {len(self.plain) - 1} more" if len(self.plain) > 1 else ""
            what = f"{len(self.plain)} matrices are not quantized in the checkpoint"
            self.ledger.append(entry("note", f"{self.plain[0]}{others}", what, "read as they are stored"))

    def _layout(self, parts: WeightParts) -> tuple[PackedEncoding, dict[str, str]]:
        """The encoding, and the stored part that each of its parts is."""
        if "qweight" in parts.tensors or self.quantization.method in ("gptq", "awq"):
            return self._grouped_words(parts)
        if "weight_packed" in parts.tensors:
            return self._compressed_words(parts)
        names = {"quants": "weight", "scale": "weight_scale"}
        if self.quantization.method == "modelopt" and self._dtype(parts, "weight") == "U8":
            return self._pairs(parts)
        kinds = {"F8_E4M3": "fp8", "I8": "int8"}
        kind = kinds.get(self._dtype(parts, "weight"))
        if kind is None:
            reason = f"it is stored as {self._dtype(parts, 'weight')} with {sorted(parts.tensors)}"
            raise LlamacError("LLC0209", parts.name, reason, KEEP)
        has_zeros = kind == "int8" and "weight_zero_point" in parts.tensors
        if has_zeros:
            names["zeros"] = "weight_zero_point"
        group = self._group_of_scales(parts, "weight_scale")
        if kind == "fp8" and group > 0:
            raise LlamacError("LLC0222", parts.name, "fp8 with a scale for each group of inputs is not supported", KEEP)
        return PackedEncoding(kind, group, not has_zeros, self._scale(parts, "weight_scale")), names

    def _compressed_words(self, parts: WeightParts) -> tuple[PackedEncoding, dict[str, str]]:
        _, columns = self._matrix(parts)
        words = self._shape(parts, "weight_packed")[1]
        bits = next((bits for bits in (4, 8) if words == -(-columns * bits // 32)), 0)
        if not bits:
            reason = f"weight_packed has {words} words for {columns} inputs: neither 4 nor 8 bits each"
            raise LlamacError("LLC0222", parts.name, reason, KEEP)
        names = {"words": "weight_packed", "scale": "weight_scale"}
        if "weight_zero_point" in parts.tensors:
            names["zeros"] = "weight_zero_point"
        group = self._group_of_scales(parts, "weight_scale")
        symmetric = "zeros" not in names
        return PackedEncoding(f"ct{bits}", group, symmetric, self._scale(parts, "weight_scale")), names

    def _pairs(self, parts: WeightParts) -> tuple[PackedEncoding, dict[str, str]]:
        """ModelOpt's W4A16_AWQ; what it divides its inputs by must be one, for nothing else takes it out again."""
        if PRE_SCALE in parts.tensors:
            stored = parts.stored(PRE_SCALE, f"{parts.name}.{PRE_SCALE}")
            values = FileRows().read(stored, 0, 1).view(DTYPES[stored.encoding].storage)
            if (values != 1).any():
                reason = "its inputs are multiplied by factors of their own (pre_quant_scale), which is not supported"
                raise LlamacError("LLC0222", parts.name, reason, KEEP)
        names = {"words": "weight", "scale": "weight_scale"}
        group = self._group_of_scales(parts, "weight_scale")
        return PackedEncoding("pairs4", group, True, self._scale(parts, "weight_scale")), names

    def _grouped_words(self, parts: WeightParts) -> tuple[PackedEncoding, dict[str, str]]:
        q = self.quantization
        layout = "awq4" if q.method == "awq" else f"gptq{q.bits}" if q.gptq_offset else f"gptqv2_{q.bits}"
        _check_group(parts.name, q.group)
        names = {"words": "qweight", "scale": "scales", "zeros": "qzeros"}
        return PackedEncoding(layout, q.group, q.symmetric, self._scale(parts, "scales")), names

    def _matrix(self, parts: WeightParts) -> tuple[int, int]:
        shape = self.shapes[parts.name]
        if len(shape) != 2:
            raise LlamacError("LLC0207", parts.name, "a vector is stored as if it were quantized", KEEP)
        return shape[0], shape[1]

    def _dtype(self, parts: WeightParts, part: str) -> str:
        if part not in parts.tensors:
            stored = next(iter(parts.tensors.values())).stored
            reason = f"its part {part} is missing beside {stored[:120]}"
            raise LlamacError("LLC0206", parts.name, reason, "download the checkpoint again")
        return parts.tensors[part].header.dtype

    def _scale(self, parts: WeightParts, part: str) -> str:
        stored = self._dtype(parts, part)
        encoding = ENCODINGS.get(stored)
        if encoding not in SCALES:
            reason = f"its scales are stored as {stored}"
            raise LlamacError("LLC0209", parts.name, reason, f"supported: {', '.join(SCALES)}")
        return encoding

    def _shape(self, parts: WeightParts, part: str) -> tuple[int, int]:
        """Rows and columns of a part whose pieces lie below one another; a vector is a column of scales."""
        self._dtype(parts, part)
        grid = _upright(parts.grids[part], parts.tensors[part].header.shape)
        return sum(band[0].rows for band in grid), max(band[0].columns for band in grid)

    def _group_of_scales(self, parts: WeightParts, part: str) -> int:
        """The group that a matrix of scales [outputs, groups] has: 0 for a row, -1 for all."""
        rows, columns = self._matrix(parts)
        found = self._shape(parts, part)
        if found == (1, 1) and rows != 1:
            return -1
        if found[0] != rows or not found[1]:
            reason = f"expected scales for {rows} outputs, found {part} of shape {list(found)}"
            raise LlamacError("LLC0208", parts.name, reason, KEEP)
        if found[1] == 1:
            return 0
        wide: list[int] = [g for g in (*KERNEL_GROUPS, *range(256, columns, 128)) if -(-columns // g) == found[1]]
        if not wide:
            reason = f"{found[1]} groups for {columns} inputs: groups of 16, 32, 64 or a multiple of 128 are supported"
            raise LlamacError("LLC0222", parts.name, reason, KEEP)
        return wide[0]

    def _check_bias(self, parts: WeightParts) -> None:
        """Older GPTQ files hold a bias of zeros for every matrix."""
        if "bias" not in parts.tensors:
            return
        tensor = parts.tensors["bias"]
        if (
            tensor.header.dtype not in WEIGHT_ENCODINGS[:3]
            or FileRows().read(parts.stored("bias", parts.name), 0, 1).any()
        ):
            reason = f"{tensor.stored[:120]} is not zero: linear layers with a bias are not supported"
            raise LlamacError("LLC0307", parts.name, reason, "compile a checkpoint without biases")

    def _check_group_order(self, parts: WeightParts, encoding: PackedEncoding) -> None:
        """g_idx names the group of each input; only groups of neighbours can be multiplied as they lie."""
        part = next((part for part in ("g_idx", "weight_g_idx") if part in parts.tensors), None)
        if part is None or encoding.group <= 0:
            return
        tensor = parts.tensors[part]
        if tensor.header.dtype != "I32" or tensor.header.shape != (self._matrix(parts)[1],):
            reason = f"{part} is {tensor.header.dtype} {list(tensor.header.shape)}, expected one number for each input"
            raise LlamacError("LLC0208", parts.name, reason, KEEP)
        stored = parts.stored(part, f"{parts.name}.{part}")
        groups = FileRows().read(stored, 0, 1).view("<i4")
        if (groups != np.arange(groups.size) // encoding.group).any() and (groups >= 0).any():
            reason = (
                "its inputs are in the order of their activations (desc_act, actorder): g_idx is not 0 0 0 ... 1 1 1"
            )
            raise LlamacError(
                "LLC0222", parts.name, reason, "use a checkpoint made with desc_act=False or static groups"
            )

    def _parts(self, parts: WeightParts, encoding: PackedEncoding, names: Mapping[str, str]) -> dict[str, StoredTensor]:
        """The parts as the encoding wants them seen: a row for each output or word of outputs."""
        made: dict[str, StoredTensor] = {}
        for part, (shape, stored_as) in encoding.parts(*self._matrix(parts)).items():
            stored = names[part]
            found = ENCODINGS.get(self._dtype(parts, stored))
            tensor = parts.tensors[stored]
            if found != stored_as:
                reason = f"{tensor.stored[:120]} is stored as {tensor.header.dtype}, expected {stored_as}"
                raise LlamacError("LLC0209", parts.name, reason, KEEP)
            grid = _upright(parts.grids[stored], tensor.header.shape)
            if "qweight" in names.values():
                grid = [[view.transposed for view in band] for band in grid]
            made[part] = _assembled(f"{parts.name}.{part}", tensor.stored, stored_as, grid, shape)
        return made


def _check_group(name: str, group: int) -> None:
    if group and group not in KERNEL_GROUPS and group % KERNEL_GROUPS[-1]:
        reason = f"groups of {group} inputs: 16, 32, 64 and multiples of 128 are supported"
        raise LlamacError("LLC0222", name, reason, KEEP)


def _upright(grid: Grid, shape: tuple[int, ...]) -> Grid:
    """Scales stored as a vector, one for each output, as a column."""
    return [[view.transposed for view in band] for band in grid] if len(shape) == 1 else grid


def _assembled(name: str, stored: str, encoding: str, grid: Grid, shape: tuple[int, int]) -> StoredTensor:
    """The grid as one tensor of `shape`; LLC0208 when it has another."""
    rows, columns = sum(band[0].rows for band in grid), max(band[0].columns for band in grid)
    if (rows, columns) != shape:
        reason = f"expected {list(shape)} for {stored[:120]}, found {[rows, columns]}"
        raise LlamacError("LLC0208", name, reason, "the config belongs to another checkpoint, or is damaged")
    pieces, row = [], 0
    for band in grid:
        view: MatrixView = band[0]
        pieces.append(view.at(row, 0))
        row += view.rows
    return assembled(name, stored, shape, encoding, pieces)
