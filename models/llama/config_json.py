"""A config from the plain JSON that `dataclasses.asdict` makes of it: what manifests and certificates hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn, get_args, get_origin, get_type_hints

from llamac.errors import LlamacError

from .config import DTYPES, ROPE_STYLES, AttentionPattern, LlamaConfig, MixtureOfExperts, RopeScaling, check_config
from .config_keys import MOST, MOST_LAYERS, short
from .vision_config import Llama4Vision, MllamaVision

WHERE = "stored config"
_WORDS = {"dtype": DTYPES, "rope_style": ROPE_STYLES, "architecture": ("llama", "llama4", "mllama")}
_PARTS = {"rope_scaling": RopeScaling, "moe": MixtureOfExperts, "attention": AttentionPattern}


def config_from_json(fields: Mapping[str, Any]) -> LlamaConfig:
    """The config that `dataclasses.asdict` made `fields` from; keys that older files lack take their defaults.

    It comes with a file that nobody need trust: LLC0303 or LLC0304 for what no config can be.
    """
    found = {name: _tuples(value) for name, value in fields.items()}
    for name, kind in _PARTS.items():
        if found.get(name) is not None:
            found[name] = _made(kind, found[name], name)
    vision = found.get("vision")
    if vision is not None:
        joint = isinstance(vision, Mapping) and "taps" in vision
        found["vision"] = _made(MllamaVision if joint else Llama4Vision, vision, "vision")
    config = _made(LlamaConfig, found, "")
    for name, known in _WORDS.items():
        if getattr(config, name) not in known:
            _refuse(f"{name} is {short(getattr(config, name))}, expected one of {', '.join(known)}")
    return check_config(config, WHERE)


def _made(kind: type[Any], fields: Any, place: str) -> Any:
    """The dataclass with these fields, each of its type."""
    if not isinstance(fields, Mapping):
        _refuse(f"{place} is {short(fields)}, expected an object")
    hints = get_type_hints(kind)
    for name, value in fields.items():
        where = f"{place}.{name}" if place else name
        if name not in hints:
            _refuse(f"{where[:80]} is not known")
        if not _fits(value, hints[name]):
            _refuse(f"{where} is {short(value)}, which is of another type")
        if place == "vision" and name.endswith("layers") and value > MOST_LAYERS:
            _refuse(f"{where} is {value}, expected at most {MOST_LAYERS}")
    try:
        return kind(**fields)
    except TypeError:  # a field without a default is missing
        missing = sorted(name for name in hints if name not in fields)
        _refuse(f"{f'{place} has' if place else 'it has'} no {' or '.join(missing)}")


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of the type that a field says: no flag for a number, and no number without end."""
    if hint is int or hint is float:
        kinds = int if hint is int else (int, float)
        return isinstance(value, kinds) and not isinstance(value, bool) and abs(value) <= MOST
    if get_origin(hint) is tuple:
        inside = get_args(hint)
        if inside[-1] is Ellipsis:
            return isinstance(value, tuple) and all(_fits(item, inside[0]) for item in value)
        return isinstance(value, tuple) and len(value) == len(inside) and all(map(_fits, value, inside))
    if get_args(hint):
        return any(_fits(value, option) for option in get_args(hint))
    return isinstance(value, hint)


def _refuse(reason: str) -> NoReturn:
    raise LlamacError("LLC0303", WHERE, reason, "get the file again from its source, or compile it again")


def _tuples(value: Any) -> Any:
    """JSON lists are tuples in a config."""
    if isinstance(value, list | tuple):
        return tuple(_tuples(item) for item in value)
    return {name: _tuples(item) for name, item in value.items()} if isinstance(value, dict) else value
