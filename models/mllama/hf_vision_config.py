"""The vision_config of a Llama 3.2 Vision's `config.json` -> `MllamaVision`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llamac.errors import LlamacError

from ..ledger import LedgerEntry, entry
from ..llama.config_keys import MOST_LAYERS, ConfigKeys, short
from ..llama.hf_keys import HARMLESS_KEYS
from ..llama.vision_config import MllamaVision

WHERE = "config.json"
WHY_DEFAULT = "the default of MllamaVisionConfig"
TAPS, DEFAULT_TAPS = "intermediate_layers_indices", [3, 7, 15, 23, 30]
RATIOS, DEFAULT_RATIOS = "supported_aspect_ratios", [[1, 1], [1, 2], [1, 3], [1, 4], [2, 1], [2, 2], [3, 1], [4, 1]]
READ_KEYS = frozenset(
    """model_type hidden_size hidden_act num_hidden_layers num_global_layers attention_heads num_attention_heads
    num_channels intermediate_size vision_output_dim image_size patch_size norm_eps max_num_tiles
    intermediate_layers_indices supported_aspect_ratios""".split()
)
LARGEST_TILES = 64
LARGEST = 1 << 20
"""Most tiles, and the largest other size of an encoder: beyond any model, so that a hostile config costs nothing."""


def vision_from_hf(raw: Mapping[str, Any], image_token: int, ledger: list[LedgerEntry]) -> MllamaVision:
    """Read a vision_config; LLC0303, LLC0304 or LLC0306 for what cannot be."""
    where = f"{WHERE} vision_config"
    given = dict(raw)
    if given.get("attention_heads") is None and given.get("num_attention_heads") is not None:
        given["attention_heads"] = given["num_attention_heads"]
    for key in ("image_size", "patch_size"):
        given[key] = _side(given.get(key), key, where)
    keys = ConfigKeys(given, where, ledger, WHY_DEFAULT)
    layers, most = keys.integer("num_hidden_layers", 32, most=MOST_LAYERS), keys.integer("max_num_tiles", 4)
    vision = MllamaVision(
        hidden_size=keys.integer("hidden_size", 1280),
        intermediate_size=keys.integer("intermediate_size", 5120),
        layers=layers,
        global_layers=keys.integer("num_global_layers", 8, most=MOST_LAYERS),
        heads=keys.integer("attention_heads", 16),
        image_size=keys.integer("image_size", 448),
        patch_size=keys.integer("patch_size", 14),
        channels=keys.integer("num_channels", 3),
        norm_eps=keys.number("norm_eps", 1e-5),
        max_tiles=most,
        taps=layer_numbers(_listed(given, TAPS, DEFAULT_TAPS, where, ledger), layers, TAPS),
        output_size=keys.integer("vision_output_dim", 7680),
        supported_aspect_ratios=_ratios(_listed(given, RATIOS, DEFAULT_RATIOS, where, ledger), most),
        image_token=image_token,
    )
    _check_activation(given)
    note_unknown(raw, READ_KEYS | HARMLESS_KEYS, where, ledger)
    return _check_sizes(vision, where)


def _side(value: object, key: str, where: str) -> object:
    """Images are square: one number, or two equal ones."""
    if isinstance(value, list) and len(value) == 2 and value[0] == value[1]:
        return value[0]
    if isinstance(value, list):
        raise LlamacError("LLC0303", where, f"{key} is {short(value)}, expected one number", "tiles must be square")
    return value


def _listed(given: Mapping[str, Any], key: str, default: list[Any], where: str, ledger: list[LedgerEntry]) -> object:
    if given.get(key) is not None:
        return given[key]
    ledger.append(entry("default", f"{where} {key}", short(default), f"not given: {WHY_DEFAULT}"))
    return default


def layer_numbers(value: object, layers: object, key: str) -> tuple[int, ...]:
    """A rising list of layers that exist; LLC0303 for anything else."""
    count = layers if isinstance(layers, int) else 0
    numbers = [n for n in value if type(n) is int and 0 <= n < count] if isinstance(value, list) else []
    if numbers != value or numbers != sorted(set(numbers)):
        reason = f"{key} is {short(value)}, expected rising numbers of the {short(layers)} layers"
        raise LlamacError("LLC0303", WHERE, reason, "take the config of the checkpoint")
    return tuple(numbers)


def _ratios(value: object, most: int) -> tuple[tuple[int, int], ...]:
    """Grids of at most `most` tiles, (rows, columns)."""
    grids = [grid for grid in value if _is_grid(grid, most)] if isinstance(value, list) else []
    if most > LARGEST_TILES or not grids or grids != value or len(grids) > most**2:
        reason = f"supported_aspect_ratios is {short(value)}, expected pairs of at most {most} tiles together"
        raise LlamacError("LLC0303", WHERE, reason, "take the config of the checkpoint")
    return tuple((grid[0], grid[1]) for grid in grids)


def _is_grid(grid: Any, most: int) -> bool:
    pair = isinstance(grid, list) and len(grid) == 2 and all(type(n) is int and n >= 1 for n in grid)
    return pair and grid[0] * grid[1] <= most


def _check_activation(given: Mapping[str, Any]) -> None:
    if given.get("hidden_act", "gelu") != "gelu":
        reason = f"the activation {short(given['hidden_act'])} is not supported"
        raise LlamacError("LLC0306", "vision.layers.N.mlp", reason, "supported hidden_act: gelu")


def _check_sizes(vision: MllamaVision, where: str) -> MllamaVision:
    """`vision` unchanged, or LLC0303/LLC0304 naming what cannot be."""
    for field in ("hidden_size", "intermediate_size", "image_size", "channels"):
        if getattr(vision, field) > LARGEST:
            reason = f"{field} is {getattr(vision, field)}, expected at most {LARGEST}"
            raise LlamacError("LLC0303", where, reason, "check the model's config")
    expected = vision.hidden_size * (1 + len(vision.taps))
    for wrong, reason in (
        (vision.hidden_size % vision.heads, f"hidden_size {vision.hidden_size} in {vision.heads} heads"),
        (
            vision.image_size % vision.patch_size,
            f"images of {vision.image_size} in patches of {vision.patch_size} pixels",
        ),
        (vision.output_size != expected, f"vision_output_dim {vision.output_size}, where {expected} channels come out"),
    ):
        if wrong:
            raise LlamacError("LLC0304", where, reason, "take the config of the checkpoint")
    return vision


def note_unknown(raw: Mapping[str, object], known: frozenset[str], where: str, ledger: list[LedgerEntry]) -> None:
    """A ledger entry for every key that is not in `known`."""
    for key, value in raw.items():
        if key not in known:
            reason = "this key is not known: ignored"
            ledger.append(entry("unknown-key", f"{where} {key[:80]}", short(value), reason))
