"""What the inputs and outputs of an ONNX Llama are for, from their names, or from their order where those say nothing.

Exporters name them `input_ids`, `attention_mask`, `position_ids`, `past_key_values.3.key`, `present.3.value`, `logits`;
llamac itself as its own step has them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from llamac.errors import LlamacError

from .proto import BFLOAT16, BOOL, FLOAT, FLOAT16, INT32, INT64, OnnxModel, ValueInfo

STEP = "the model takes ids and the keys and values of the past, and returns logits, keys and values (export with past)"
WHOLE_TEXTS = "export it with past (optimum: text-generation-with-past), or a Llama of transformers without changes"
_STATE = re.compile(
    r"(?:(?:past_key_values|past|present_key_values|present|cache|new)[._])?"
    r"(?:(?P<layer>\d{1,4})[._](?:self[._])?(?P<side>key|value|k|v)|(?P<first>key|value|k|v)s?[._](?P<last>\d{1,4}))"
)
_FLOATS, _INTEGERS = (FLOAT, FLOAT16, BFLOAT16), (INT64, INT32)


@dataclass(frozen=True)
class Signature:
    """The names of what goes in and comes out; `pasts` and `presents` are k.0, v.0, k.1, v.1 ...

    A graph without past takes whole texts: then both are empty, and keys and values that it returns are left out.
    """

    ids: ValueInfo
    positions: ValueInfo | None
    mask: ValueInfo | None
    kept_logits: ValueInfo | None
    pasts: list[ValueInfo]
    logits: ValueInfo
    presents: list[ValueInfo]

    @property
    def layers(self) -> int:
        return len(self.pasts) // 2

    @property
    def has_past(self) -> bool:
        return bool(self.pasts)


def read_signature(model: OnnxModel) -> Signature:
    """The roles of inputs and outputs; LLC0937 when they are not those of one step of a Llama."""
    inputs = [value for value in model.inputs if value.name not in model.tensors]
    floats = [value for value in inputs if value.type in _FLOATS]
    ids, positions, mask, kept = _integer_inputs(model, [value for value in inputs if value not in floats])
    if not model.outputs:
        raise unlike(model, "it has no outputs")
    logits = next((value for value in model.outputs if value.name == "logits"), model.outputs[0])
    presents = [value for value in model.outputs if value is not logits]
    if not floats and len(presents) % 2 == 0:
        return Signature(ids, positions, mask, kept, [], logits, [])
    if len(floats) % 2 or len(floats) != len(presents):
        reason = f"it takes {len(floats)} tensors of keys and values and returns {len(presents)}"
        raise unlike(model, reason)
    return Signature(ids, positions, mask, kept, _in_order(model, floats), logits, _in_order(model, presents))


def unlike(model: OnnxModel, reason: str) -> LlamacError:
    """LLC0937 for a model that is no step of a Llama."""
    return LlamacError("LLC0937", model.file.name, reason, STEP)


def _integer_inputs(
    model: OnnxModel, values: Sequence[ValueInfo]
) -> tuple[ValueInfo, ValueInfo | None, ValueInfo | None, ValueInfo | None]:
    """Ids, positions, mask, and how many rows get logits."""
    left = list(values)
    kept = _take(left, lambda v: "logits_to_keep" in v.name)
    mask = _take(left, lambda v: "mask" in v.name and v.type in (*_INTEGERS, BOOL))
    positions = _take(left, lambda v: "position" in v.name and v.type in _INTEGERS)
    ids = _take(left, lambda v: "ids" in v.name and v.type in _INTEGERS) or _take(left, lambda v: v.type in _INTEGERS)
    positions = positions or _take(left, lambda v: v.type in _INTEGERS)
    if ids is None or left:
        named = ", ".join(value.name[:60] for value in (left or values)[:6])
        raise unlike(model, f"it takes {named or 'no ids'}" if ids is None else f"it takes {named} besides")
    return ids, positions, mask, kept


def _take(values: list[ValueInfo], wanted: object) -> ValueInfo | None:
    assert callable(wanted)
    found = next((value for value in values if wanted(value)), None)
    if found is not None:
        values.remove(found)
    return found


def _in_order(model: OnnxModel, values: Sequence[ValueInfo]) -> list[ValueInfo]:
    """Keys and values layer by layer; in the order of the file where their names do not say."""
    places = {place: value for value in values if (place := _place(value.name)) is not None}
    if not places:
        return list(values)
    wanted = [(layer, side) for layer in range(len(values) // 2) for side in (0, 1)]
    if sorted(places) != wanted or len(values) != len(wanted):
        named = ", ".join(value.name[:60] for value in values[:4])
        raise unlike(model, f"the keys and values of {len(wanted) // 2} layers are not all there: {named} ...")
    return [places[place] for place in wanted]


def _place(name: str) -> tuple[int, int] | None:
    """(layer, 0 for keys and 1 for values) that a name tells, such as `past_key_values.3.key` or `past_k.3`."""
    found = _STATE.fullmatch(name.lower())
    if found is None:
        return None
    layer, side = found["layer"] or found["last"], found["side"] or found["first"]
    return int(layer), int(side.startswith("v"))
