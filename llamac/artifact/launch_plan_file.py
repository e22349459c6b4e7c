"""Launch plans as JSON: the canonical text that the compiler writes, and a reader that trusts none of it.

Expressions are `3`, `"tokens"` or `["ceil_div", "tokens", 16]`; an argument of a launch is an expression or, for an
address, `{"arena": 4096}`. A launch is `[kernel, [x, y, z], [arguments], where]`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, TypeGuard, TypeVar

from llamac.errors import LlamacError

from .launch_plan import (
    KINDS,
    MEETINGS,
    NEEDED_RESULTS,
    OPERATIONS,
    PAGES,
    PLAN_VERSION,
    RESULTS,
    ROLES,
    VARIABLES,
    Argument,
    Bucket,
    Buffer,
    Encoder,
    Expression,
    Kernel,
    KernelParameter,
    Launch,
    LaunchPlan,
    Meeting,
    Pointer,
)

FORMAT = "llamac-launch-plan"
MAXIMUM_BYTES = 256 << 20
_DEEPEST = 8
_MOST = 1 << 48
_I32 = 1 << 31
_LONGEST_TEXT = 1 << 12
T = TypeVar("T")


def write_plan(plan: LaunchPlan) -> bytes:
    """The one text of a plan: keys sorted, no spaces, a line a launch."""
    lists = {
        "buffers": [_fields(b) for b in plan.buffers],
        "kernels": [
            _fields(k) | {"parameters": [[p.name, p.type] for p in k.parameters], "constants": dict(k.constants)}
            for k in plan.kernels
        ],
    }
    head = _fields(plan) | {"format": FORMAT, "version": PLAN_VERSION}
    if plan.ranks == 1:  # a model that is whole says nothing of ranks
        head = {key: value for key, value in head.items() if key not in ("ranks", "rank")}
    parts = {k: _text(v) for k, v in head.items() if k not in ("buffers", "kernels", "buckets", "encoder")}
    parts |= {key: _lines(list(map(_text, value))) for key, value in lists.items()}
    parts["buckets"] = _lines([_bucket_text(bucket) for bucket in plan.buckets])
    if plan.encoder is not None:
        launches = _lines(list(map(_launch_text, plan.encoder.launches)))
        parts["encoder"] = (
            f'{{"launches":{launches},"most_rows":{plan.encoder.most_rows},"shapes":{_text(plan.encoder.shapes)}}}'
        )
    return ("{\n" + ",\n".join(f"{_text(key)}:{parts[key]}" for key in sorted(parts)) + "\n}\n").encode()


def _fields(row: Any) -> dict[str, Any]:
    return {name: getattr(row, name) for name in row.__dataclass_fields__}


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def _lines(rows: list[str]) -> str:
    return "[\n" + ",\n".join(rows) + "\n]" if rows else "[]"


def _bucket_text(bucket: Bucket) -> str:
    there = [name for name in RESULTS if name in bucket.tails]
    tails = ",".join(f"{_text(name)}:{_lines(list(map(_launch_text, bucket.tails[name])))}" for name in there)
    named = {"name": bucket.name, "kind": bucket.kind, "tokens": bucket.tokens, "rows": bucket.rows}
    launches = _lines([_launch_text(launch) for launch in bucket.launches])
    met = {name: [_meeting_fields(m) for m in found] for name, found in bucket.meetings.items() if found}
    meetings = f',"meetings":{_text(met)}' if met else ""
    return _text(named)[:-1] + f',"launches":{launches}{meetings},"tails":{{{tails}}}}}'


def _meeting_fields(meeting: Meeting) -> list[Any]:
    places = [{p.buffer: p.offset} for p in (meeting.source, meeting.to)]
    return [meeting.at, meeting.kind, *places, meeting.rows, meeting.columns, meeting.where]


def _launch_text(launch: Launch) -> str:
    arguments = [{a.buffer: a.offset} if isinstance(a, Pointer) else a for a in launch.arguments]
    return _text([launch.kernel, launch.grid, arguments, launch.where])


def read_plan(data: bytes, where: str) -> LaunchPlan:
    """The plan in `data`; LLC0714 for anything that a launch could not be made of, named by its place in the file."""
    if len(data) > MAXIMUM_BYTES:
        _refuse(where, "", f"is larger than {MAXIMUM_BYTES} bytes")
    try:
        found = json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise LlamacError("LLC0714", where, f"is not valid JSON: {ascii(str(error))[:200]}") from None
    return _Reader(where).plan(found)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number here")


def _refuse(where: str, place: str, reason: str) -> NoReturn:
    raise LlamacError("LLC0714", where, f"{place or 'the plan'} {reason}", "the artifact is damaged: copy it again")


class _Reader:
    """Turns JSON into a plan, refusing whatever has the wrong kind, size or reference."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.sizes: dict[str, Expression] = {}
        self.variables: set[str] = set(VARIABLES)
        self.kernels: tuple[Kernel, ...] = ()

    def plan(self, found: Any) -> LaunchPlan:
        row = self.object(found, "")
        if row.get("format") != FORMAT or row.get("version") != PLAN_VERSION:
            self.refuse("", f'must say "format": "{FORMAT}", "version": {PLAN_VERSION}')
        buffers = self.each(row, "buffers", self.buffer)
        self.sizes = {b.name: b.bytes for b in buffers}
        if len(self.sizes) != len(buffers):
            self.refuse("buffers", "has two buffers of one name")
        self.variables |= {f"{PAGES}.{b.name}" for b in buffers if b.role == "cache"}
        for buffer in buffers:
            self.check_variables(buffer.bytes, f"buffers.{buffer.name}.bytes")
        self.kernels = self.each(row, "kernels", self.kernel)
        kind, code = self.text(row, "kind", ""), self.text(row, "code", "")
        if (kind, code) not in (("cuda", "cubin"), ("cuda", "ptx"), ("hip", "hsaco")):
            self.refuse("kind", f"{kind!r} with code {code!r} is unknown")
        return LaunchPlan(
            target=self.text(row, "target", ""), kind=kind, architecture=self.text(row, "architecture", ""), code=code,
            warp=self.integer(row, "warp", "", 1, 128), toolkit=self.text(row, "toolkit", ""),
            vocab=self.integer(row, "vocab", "", 1, _I32), page_tokens=self.integer(row, "page_tokens", "", 1, _I32),
            buffers=buffers, kernels=self.kernels, buckets=self.each(row, "buckets", self.bucket),
            ranks=self.integer({"ranks": 1, **row}, "ranks", "", 1, 64),
            rank=self.integer({"rank": 0, **row}, "rank", "", 0, 1),
            encoder=self.encoder(row["encoder"]) if "encoder" in row else None,
        )  # fmt: skip

    def encoder(self, found: Any) -> Encoder:
        row = self.object(found, "encoder")
        most = self.integer(row, "most_rows", "encoder", 1, 1 << 24)
        launches = self.each(row, "launches", self.launch, "encoder")
        return Encoder(launches, most, self.each(row, "shapes", self.tiles, "encoder"))

    def tiles(self, found: Any, place: str) -> int:
        if not _is_integer(found) or not 0 <= found <= 1 << 16:
            self.refuse(place, "is no number of tiles")
        return found

    def buffer(self, found: Any, place: str) -> Buffer:
        row = self.object(found, place)
        role = self.text(row, "role", place)
        if role not in ROLES:
            self.refuse(f"{place}.role", f"{role!r} is unknown")
        size = self.expression(row.get("bytes"), f"{place}.bytes")
        if isinstance(size, int) and size < 0:
            self.refuse(f"{place}.bytes", "is negative")
        return Buffer(
            self.text(row, "name", place), role, size, self.text(row, "type", place), self.text(row, "member", place),
            self.integer(row, "page_bytes", place, 0, _MOST), self.integer(row, "tile_tokens", place, 0, _I32),
        )  # fmt: skip

    def kernel(self, found: Any, place: str) -> Kernel:
        row = self.object(found, place)
        parameters = self.each(row, "parameters", self.parameter, place)
        constants = self.object(row.get("constants"), f"{place}.constants")
        dependent = row.get("dependent_launch")
        if not isinstance(dependent, bool):
            self.refuse(f"{place}.dependent_launch", "must be true or false")

        def number(key: str, low: int, high: int) -> int:
            return self.integer(row, key, place, low, high)

        return Kernel(
            self.text(row, "name", place), self.text(row, "member", place), self.text(row, "source", place),
            parameters, constants, number("warps", 1, 32), number("shared_bytes", 0, 1 << 20),
            number("blocks_per_cluster", 1, 16), number("global_scratch_bytes", 0, 1 << 30),
            number("profile_scratch_bytes", 0, 1 << 30), dependent, number("registers", 0, 1024),
            number("spilled_bytes", 0, 1 << 30),
        )  # fmt: skip

    def parameter(self, found: Any, place: str) -> KernelParameter:
        if not isinstance(found, list) or len(found) != 2 or not all(isinstance(part, str) for part in found):
            self.refuse(place, "must be a name and a type")
        name, type_name = found
        if type_name != "i32" and not type_name.startswith("*"):
            self.refuse(place, f"has the type {ascii(type_name)[:40]}, neither i32 nor a pointer")
        return KernelParameter(name, type_name)

    def bucket(self, found: Any, place: str) -> Bucket:
        row = self.object(found, place)
        kind = self.text(row, "kind", place)
        tails = self.object(row.get("tails"), f"{place}.tails")
        if kind not in KINDS or not set(NEEDED_RESULTS) <= set(tails) <= set(RESULTS):
            self.refuse(place, f"must be of a kind in {KINDS} and end in {NEEDED_RESULTS}")
        meetings = self.object(row.get("meetings", {}), f"{place}.meetings")
        if not set(meetings) <= {"launches", *RESULTS}:
            self.refuse(f"{place}.meetings", "must stand in launches or in a tail")
        return Bucket(
            self.text(row, "name", place), kind, self.integer(row, "tokens", place, 1, 1 << 20),
            self.integer(row, "rows", place, 1, 1 << 20), self.each(row, "launches", self.launch, place),
            {name: self.each(tails, name, self.launch, f"{place}.tails") for name in RESULTS if name in tails},
            {name: self.each(meetings, name, self.meeting, f"{place}.meetings") for name in meetings},
        )  # fmt: skip

    def meeting(self, found: Any, place: str) -> Meeting:
        if not isinstance(found, list) or len(found) != 7 or found[1] not in MEETINGS or not isinstance(found[6], str):
            self.refuse(place, "must be a number, a kind, two addresses, rows, columns and a place")
        at, kind, source, to, rows, columns, where = found
        if not (_is_integer(at) and 0 <= at < 1 << 24 and _is_integer(columns) and 0 < columns < _I32):
            self.refuse(place, "has a number outside its range")
        count = self.expression(rows, f"{place}.rows")
        self.check_variables(count, place)
        value = KernelParameter("value", "*fp32")
        begin, end = (self.argument(p, value, place) for p in (source, to))
        assert isinstance(begin, Pointer) and isinstance(end, Pointer)
        return Meeting(at, kind, begin, end, count, columns, where)

    def launch(self, found: Any, place: str) -> Launch:
        if not isinstance(found, list) or len(found) != 4 or not isinstance(found[3], str):
            self.refuse(place, "must be a kernel, a grid, arguments and a place")
        index, grid, arguments, where = found
        if not _is_integer(index) or not 0 <= index < len(self.kernels):
            self.refuse(place, "names a kernel that is not there")
        if not isinstance(grid, list) or len(grid) != 3:
            self.refuse(f"{place}.grid", "must have three sizes")
        x, y, z = (self.grid(size, f"{place}.grid") for size in grid)
        parameters = self.kernels[index].parameters
        if not isinstance(arguments, list) or len(arguments) != len(parameters):
            self.refuse(place, f"must have {len(parameters)} arguments")
        pairs = zip(arguments, parameters, strict=True)
        passed = tuple(self.argument(a, p, f"{place}.{p.name}") for a, p in pairs)
        return Launch(index, (x, y, z), passed, where)

    def grid(self, found: Any, place: str) -> Expression:
        size = self.expression(found, place)
        self.check_variables(size, place)
        if isinstance(size, int) and not 1 <= size < _I32:
            self.refuse(place, f"{size} is no number of blocks")
        return size

    def argument(self, found: Any, parameter: KernelParameter, place: str) -> Argument:
        if parameter.is_pointer != isinstance(found, dict):
            self.refuse(place, f"does not fit a parameter of type {parameter.type}")
        if not isinstance(found, dict):
            value = self.expression(found, place)
            self.check_variables(value, place)
            if isinstance(value, int) and not -_I32 <= value < _I32:
                self.refuse(place, "does not fit 32 bits")
            return value
        if len(found) != 1:
            self.refuse(place, "must name one buffer")
        ((buffer, offset),) = found.items()
        size = self.sizes.get(buffer)
        if size is None:
            self.refuse(place, f"points into {ascii(buffer)[:60]}, which is no buffer")
        if not _is_integer(offset) or not 0 <= offset < (size if isinstance(size, int) else _MOST):
            self.refuse(place, f"points outside of {buffer}")
        return Pointer(buffer, offset)

    def expression(self, found: Any, place: str, depth: int = 0) -> Expression:
        if _is_integer(found) and abs(found) <= _MOST:
            return int(found)
        if isinstance(found, str) and found:
            return found
        if not isinstance(found, list) or len(found) != 3 or found[0] not in OPERATIONS or depth >= _DEEPEST:
            self.refuse(place, "is no expression")
        left, right = (self.expression(part, place, depth + 1) for part in found[1:])
        return found[0], left, right

    def check_variables(self, expression: Expression, place: str) -> None:
        if isinstance(expression, str) and expression not in self.variables:
            self.refuse(place, f"has the unknown variable {ascii(expression)[:40]}")
        if isinstance(expression, tuple):
            for part in expression[1:]:
                self.check_variables(part, place)

    def each(self, row: Mapping[str, Any], key: str, read: Callable[[Any, str], T], inside: str = "") -> tuple[T, ...]:
        place = f"{inside}.{key}" if inside else key
        found = row.get(key)
        if not isinstance(found, list):
            self.refuse(place, "must be a list")
        return tuple(read(item, f"{place}[{index}]") for index, item in enumerate(found))

    def object(self, found: Any, place: str) -> Mapping[str, Any]:
        if not isinstance(found, dict):
            self.refuse(place, "must be an object")
        return found

    def text(self, row: Mapping[str, Any], key: str, place: str) -> str:
        found = row.get(key)
        if not isinstance(found, str) or len(found) > _LONGEST_TEXT:
            self.refuse(f"{place}.{key}", "must be a text")
        return found

    def integer(self, row: Mapping[str, Any], key: str, place: str, low: int, high: int) -> int:
        found = row.get(key)
        if not _is_integer(found) or not low <= found <= high:
            self.refuse(f"{place}.{key}", f"must be an integer in {low}..{high}")
        return int(found)

    def refuse(self, place: str, reason: str) -> NoReturn:
        _refuse(self.where, place, reason)


def _is_integer(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)
