"""The parts of an artifact's manifest that running needs, read once into typed rows.

`llamac.artifact` has checked that every key is there with its type; here are the ranges without which a number from a
file would become a wild pointer or an endless loop: LLC0802 names the first key that is out of range.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llamac.errors import LlamacError

from .images.settings import settings_of_model

LARGEST_BUFFER_BYTES = 1 << 46
"""No buffer of a manifest may ask for more than 64 TiB: a larger number is damage, not a model."""

LARGEST_COUNT = (1 << 31) - 1
"""Ids, positions and counts travel as 32-bit integers."""


@dataclass(frozen=True)
class CachePlan:
    """The cache of one kind of attention layer; rows see their own block of `chunk` positions, 0: all before them.

    cross: it holds vision tokens, and rows see those of the pictures before them.
    """

    chunk: int
    layers: tuple[int, ...]
    page_bytes: int
    cross: bool = False


@dataclass(frozen=True)
class MemoryPlan:
    """What the compiler planned: sizes in bytes unless the name says otherwise."""

    arena_bytes: int
    kv_page_tokens: int
    caches: tuple[CachePlan, ...]
    kv_dtype: str
    max_step_tokens: int
    weight_bytes: int
    weight_bytes_per_token: int


@dataclass(frozen=True)
class ImagePlan:
    """What one pass of the image encoder takes and gives.

    pixels: tiles, channels, height, width. embeddings: rows, width. A pass takes one tile, or, where `is_joint`, all
    tiles of a picture, which need an aspect ratio.
    """

    pixels: tuple[int, int, int, int]
    embeddings: tuple[int, int]
    is_joint: bool


@dataclass(frozen=True)
class CodeTarget:
    """One compiled code member and the machine it needs."""

    name: str
    kind: str
    triple: str
    requires: tuple[str, ...]
    code: str
    layout: str
    fallback: str | None = None
    """GPUs: the member with the launch plan of code that other GPUs of the kind can run too."""
    ranks: tuple[str, ...] = ()
    """The weight layout of each process, where several share the model."""
    others: tuple[str, ...] = ()
    """GPUs: the launch plans of the processes behind the first, as code and fallback."""

    @property
    def architecture(self) -> str:
        """The machine part of the triple: `x86_64-linux-gnu` -> `x86_64`."""
        return self.triple.split("-", 1)[0]


@dataclass(frozen=True)
class RunPlan:
    """Everything the runtime reads from a manifest before it maps a byte of weights."""

    name: str
    context_length: int
    vocab_size: int
    token_ids: int
    """Ids below this may be fed; those from `vocab_size` on have no logit."""
    most_vision_tokens: int
    """Vision tokens of the largest picture, in models that keep them in a cache of their own; else 0."""
    memory: MemoryPlan
    targets: tuple[CodeTarget, ...]
    weight_members: Mapping[str, str]
    """Weight layout -> the member that holds the weights packed so."""
    bos_id: int | None
    add_bos: bool
    stop_ids: frozenset[int]
    defaults: Mapping[str, Any]
    image: ImagePlan | None = None


def read_run_plan(manifest: Mapping[str, Any]) -> RunPlan:
    """Read what running needs of a checked manifest; LLC0802 for a number out of its range."""
    model, generation = manifest["model"], manifest["generation"]
    vocab_size = _within("model.vocab_size", model["vocab_size"], 1, LARGEST_COUNT)
    bos_id = generation["bos_id"]
    return RunPlan(
        name=model["name"],
        context_length=_within("model.context_length", model["context_length"], 1, LARGEST_COUNT),
        vocab_size=vocab_size,
        token_ids=_within("model.token_ids", model.get("token_ids", vocab_size), 1, LARGEST_COUNT),
        most_vision_tokens=_most_vision_tokens(manifest),
        memory=_read_memory(manifest["memory"]),
        targets=tuple(_read_target(row) for row in manifest["targets"]),
        weight_members={row["layout"]: row["member"] for row in manifest["weights"]},
        bos_id=None if bos_id is None else _within("generation.bos_id", bos_id, 0, vocab_size - 1),
        add_bos=generation["add_bos"],
        stop_ids=_read_ids("generation.stop_ids", generation["stop_ids"], vocab_size),
        defaults=dict(generation["defaults"]),
        image=_read_image(manifest.get("image")),
    )


def _read_memory(memory: Mapping[str, Any]) -> MemoryPlan:
    return MemoryPlan(
        arena_bytes=_within("memory.arena_bytes", memory["arena_bytes"], 0, LARGEST_BUFFER_BYTES),
        kv_page_tokens=_within("memory.kv_page_tokens", memory["kv_page_tokens"], 1, LARGEST_COUNT),
        caches=_read_caches(memory["caches"]),
        kv_dtype=memory["kv_dtype"],
        max_step_tokens=_within("memory.max_step_tokens", memory["max_step_tokens"], 1, LARGEST_COUNT),
        weight_bytes=memory["weight_bytes"],
        weight_bytes_per_token=memory["weight_bytes_per_token"],
    )


def _read_caches(rows: Sequence[Mapping[str, Any]]) -> tuple[CachePlan, ...]:
    _within("memory.caches", len(rows), 1, 16)
    return tuple(
        CachePlan(
            _within("memory.caches[].chunk", row["chunk"], 0, LARGEST_COUNT),
            tuple(_within("memory.caches[].layers", layer, 0, LARGEST_COUNT) for layer in row["layers"]),
            _within("memory.caches[].page_bytes", row["page_bytes"], 1, LARGEST_BUFFER_BYTES),
            _is_cross(row),
        )
        for row in rows
    )


def _most_vision_tokens(manifest: Mapping[str, Any]) -> int:
    if not any(map(_is_cross, manifest["memory"]["caches"])):
        return 0
    settings = settings_of_model(manifest["model"]["config"].get("vision") or {})
    return settings.most_tiles * settings.tile_tokens


def _is_cross(row: Mapping[str, Any]) -> bool:
    kind = row.get("kind", "chunk" if row["chunk"] else "full")
    if kind not in ("full", "chunk", "cross") or (kind == "chunk") != bool(row["chunk"]):
        reason = f"is {ascii(kind)[:40]} with chunk {row['chunk']}, must be full, chunk or cross"
        raise LlamacError("LLC0802", "manifest key memory.caches[].kind", reason, "compile the model again")
    return bool(kind == "cross")


def _read_image(entry: Mapping[str, Any] | None) -> ImagePlan | None:
    if entry is None:
        return None
    pixels, embeddings = (
        [_within(f"image.{key}[]", n, 1, LARGEST_COUNT) for n in entry[key]] for key in ("pixels", "embeddings")
    )
    _within("image.pixels", len(pixels), 4, 4)
    _within("image.embeddings", len(embeddings), 2, 2)
    return ImagePlan((pixels[0], pixels[1], pixels[2], pixels[3]), (embeddings[0], embeddings[1]), entry["joint"])


def _read_target(row: Mapping[str, Any]) -> CodeTarget:
    requires, fallback = tuple(row["requires"]), row.get("fallback")
    shares = (tuple(row.get("ranks", ())), tuple(row.get("others", ())))
    return CodeTarget(row["name"], row["kind"], row["triple"], requires, row["code"], row["layout"], fallback, *shares)


def _read_ids(key: str, ids: Iterable[int], vocab_size: int) -> frozenset[int]:
    return frozenset(_within(key, token_id, 0, vocab_size - 1) for token_id in ids)


def _within(key: str, value: int, minimum: int, maximum: int) -> int:
    if not minimum <= value <= maximum:
        reason = f"is {value}, must be in {minimum}..{maximum}"
        raise LlamacError("LLC0802", f"manifest key {key}", reason, "compile the model again")
    return value
