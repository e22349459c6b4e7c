"""The plan of one model on one machine: bytes of every kind, whether they fit, and the floors of its times."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from llamac.models.llama.config import LlamaConfig
from llamac.passes.pipelines import Quantization

from .arena import Arena, estimate_arena, plan_arena
from .kv import COMPILED_KV, KvGroup, kv_groups
from .machine import Floor, Machine, floor_of
from .request import Request, check_request
from .weights import (
    Part,
    active_parameters,
    bytes_by_role,
    counted_image_parts,
    parameters_by_role,
    read_bytes,
    weight_parts,
)
from .work import Load, Work, decode_work, prefill_work


@dataclass
class Subject:
    """A model to plan, known by its config and by how its weights are stored; what is costly to count is kept.

    stored: encoding -> bytes in the checkpoint's files, nothing for a bare config.
    """

    name: str
    config: LlamaConfig
    encodings: Mapping[str, str]
    stored: Mapping[str, int] = field(default_factory=dict)
    _parts: dict[tuple[Quantization, int], tuple[Part, ...]] = field(default_factory=dict)
    _counted: dict[tuple[Quantization, int], tuple[Part, ...]] = field(default_factory=dict)
    _arenas: dict[tuple[Quantization, int, str, int], Arena] = field(default_factory=dict)

    def parts(self, request: Request, machine: Machine) -> tuple[Part, ...]:
        """The weights on one device."""
        key = (request.quantization, request.tp)
        if key not in self._parts:
            self._parts[key] = weight_parts(self.config, self.encodings, *key)
        return (*self._parts[key], *self.arena(request, machine).image_parts)

    def arena(self, request: Request, machine: Machine) -> Arena:
        """The arena on one device, and the weights of the image side: the compiler's own, or estimates."""
        if machine.uncounted:
            return Arena(0, (), machine.uncounted)
        steps = request.max_step_tokens
        if request.tp > 1 and self.config.vision is not None:
            reason = "no code for several devices takes pictures"
            return Arena(estimate_arena(self.config, steps, request.tp), self._image_parts(request), reason)
        gpu = machine.name if machine.is_gpu else ""
        key = (request.quantization, steps, gpu, request.tp)
        if key not in self._arenas:
            self._arenas[key] = plan_arena(self.config, self.encodings, *key)
        return self._arenas[key]

    def _image_parts(self, request: Request) -> tuple[Part, ...]:
        key = (request.quantization, request.tp)
        if key not in self._counted:
            self._counted[key] = counted_image_parts(self.config, self.encodings, *key)
        return self._counted[key]


@dataclass(frozen=True)
class Memory:
    """Bytes on one device; `estimated` says of each component that is not exact why it is not."""

    weights: int
    kv: int
    arena: int
    logits: int
    code: int
    device: int | None
    estimated: Mapping[str, str]

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.kv + self.arena + self.logits + self.code

    @property
    def free(self) -> int | None:
        """What is left of the device, negative when it does not fit; None when its size is unknown."""
        return None if self.device is None else self.device - self.total


@dataclass(frozen=True)
class Phase:
    """A prefill or a decode step: the work of one device, its floor, and tokens a second of all sequences together."""

    tokens: int
    work: Work
    floor: Floor

    @property
    def tokens_per_second(self) -> float | None:
        """None where the floor is unknown."""
        return self.tokens / self.floor.seconds if self.floor.seconds else None


@dataclass(frozen=True)
class Plan:
    """Everything that `llamac plan` prints."""

    subject: Subject
    request: Request
    machine: Machine
    groups: tuple[KvGroup, ...]
    memory: Memory
    prefill: Phase
    decode: Phase
    largest_context: int | None
    largest_batch: int | None

    @property
    def parts(self) -> tuple[Part, ...]:
        """The weights on one device."""
        return self.subject.parts(self.request, self.machine)


def make_plan(subject: Subject, request: Request, machine: Machine, limits: bool = True) -> Plan:
    """Plan `request` (LLC0109 when it cannot be). limits: also look for the largest context and batch that fit."""
    check_request(request, subject.config, machine)
    memory, groups = plan_memory(subject, request, machine)
    parts = subject.parts(request, machine)
    layout = (machine.layout, request.max_step_tokens, request.tp, machine.is_gpu)
    load = Load(subject.config, parts, groups, *layout)
    prefill, decode = prefill_work(load, request.prompt_tokens), decode_work(load, request.batch, request.context)
    context, batch = largest(subject, request, machine) if limits else (None, None)
    phases = (
        Phase(request.prompt_tokens, prefill, floor_of(prefill, machine)),
        Phase(request.batch, decode, floor_of(decode, machine)),
    )
    return Plan(subject, request, machine, groups, memory, *phases, context, batch)


def plan_memory(subject: Subject, request: Request, machine: Machine) -> tuple[Memory, tuple[KvGroup, ...]]:
    """Bytes on one device, and the caches they include."""
    config = subject.config
    groups = kv_groups(
        config, request.context, request.max_step_tokens, machine.cache or request.kv_dtype, request.tp, request.images
    )
    parts = subject.parts(request, machine)
    arena = subject.arena(request, machine)
    memory = Memory(
        weights=sum(bytes_by_role(parts, machine.layout).values()),
        kv=request.batch * sum(group.bytes for group in groups) + _padding(machine, groups),
        arena=arena.bytes,
        logits=4 * request.batch * config.vocab_size,
        code=machine.code_bytes,
        device=machine.memory_bytes,
        estimated=_estimated(request, machine, arena),
    )
    return memory, groups


def _padding(machine: Machine, groups: tuple[KvGroup, ...]) -> int:
    """The page of each cache that the rows write to which fill up a step on a GPU."""
    return sum(group.page_bytes for group in groups) if machine.is_gpu else 0


def _estimated(request: Request, machine: Machine, arena: Arena) -> dict[str, str]:
    found = {"code": "an upper bound of what is usual" if not machine.is_gpu else "what the driver usually takes"}
    if arena.estimated:
        found["arena"] = arena.estimated
    if arena.estimated and arena.image_parts:
        found["weights"] = f"the image encoder is counted as its weights are stored; {arena.estimated}"
    if request.kv_dtype not in COMPILED_KV["gpu" if machine.is_gpu else "cpu"]:
        found["kv"] = f"a cache of {request.kv_dtype} is not compiled for it; one scale a head where it has scales"
    return found


def largest(subject: Subject, request: Request, machine: Machine) -> tuple[int | None, int | None]:
    """The largest context for this batch, and the largest batch for this context, that fit; 0 when nothing does."""
    if machine.memory_bytes is None:
        return None, None
    room = machine.memory_bytes

    def context_fits(context: int) -> bool:
        return plan_memory(subject, replace(request, context=context), machine)[0].total <= room

    def batch_fits(batch: int) -> bool:
        return plan_memory(subject, replace(request, batch=batch), machine)[0].total <= room

    return _last(context_fits, subject.config.context_length), _last(batch_fits, request.max_step_tokens)


def _last(fits: Callable[[int], bool], most: int) -> int:
    """The largest number from 0 to `most` for which `fits` holds, which it does below any for which it holds."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def plan_to_json(plan: Plan) -> dict[str, Any]:
    """The machine-readable plan, complete: sizes in bytes, times in seconds."""
    subject, request, machine, memory = plan.subject, plan.request, plan.machine, plan.memory
    config = subject.config
    return {
        "model": {
            "name": subject.name,
            "architecture": config.architecture,
            "context_length": config.context_length,
            "parameters": parameters_by_role(config, subject.encodings),
            "active_parameters": active_parameters(config, subject.encodings),
            "stored_bytes": dict(subject.stored) or None,
        },
        "target": {**_plain(machine), "peaks": dict(machine.peaks)},
        "request": {**_plain(request), "quantization": str(request.quantization)},
        "weights": {
            "by_role": bytes_by_role(plan.parts, machine.layout),
            "by_format": _by_format(plan.parts, machine.layout),
            "bytes": memory.weights,
            "read_per_token": round(read_bytes(plan.parts, config, machine.layout, 1)),
        },
        "kv": [
            {**_plain(group), "pages": group.pages, "page_bytes": group.page_bytes, "bytes_per_sequence": group.bytes}
            for group in plan.groups
        ],
        "memory": {
            **_plain(memory),
            "estimated": dict(memory.estimated),
            "total": memory.total,
            "free": memory.free,
            "fits": None if memory.free is None else memory.free >= 0,
            "largest_context": plan.largest_context,
            "largest_batch": plan.largest_batch,
        },
        "prefill": phase_to_json(plan.prefill),
        "decode": phase_to_json(plan.decode),
        "efficiency": 1,
    }


def phase_to_json(phase: Phase) -> dict[str, Any]:
    """One phase: the work, the floor by what bounds it, and the rate that follows."""
    work, floor = phase.work, phase.floor
    return {
        "tokens": phase.tokens,
        "operations": {name: round(count) for name, count in work.operations.items()},
        "weight_bytes": round(work.weight_bytes),
        "cache_bytes": round(work.cache_bytes),
        "exchanged_bytes": round(work.exchanged_bytes),
        "seconds": floor.seconds,
        "bound": floor.bound,
        "seconds_by_bound": dict(floor.by_bound),
        "tokens_per_second": phase.tokens_per_second,
    }


def _plain(row: Any) -> dict[str, Any]:
    return {f.name: getattr(row, f.name) for f in dataclasses.fields(row)}


def _by_format(parts: tuple[Part, ...], layout: str) -> dict[str, int]:
    sums: Counter[str] = Counter()
    for part in parts:
        sums["f32" if part.use == "vector" else part.format] += part.bytes(layout)
    return dict(sums)
