"""Calls that draw a token of each wanted row from its logits: the best of each tile, then the draw."""

from __future__ import annotations

from llamac.artifact.launch_plan import LISTED, ROWS, SAMPLED_WORDS, SAMPLING_WORDS, Buffer, Pointer

from .architectures import Architecture
from .calls import StepCalls
from .request import CompileOptions, Constant, KernelRequest

MOST_TILES = 64
"""Of a row: one program merges the bests of all."""

SAMPLING, CHOSEN, SAMPLED = "sampling", "chosen", "sampled"
"""The input with the options of each row; the outputs for the next step, its tokens, and for the host."""


def tile_size(vocab: int) -> int:
    """Logits of a tile."""
    return max(LISTED, 1 << (-(-vocab // MOST_TILES) - 1).bit_length())


def tile_bests(machine: Architecture, vocab: int) -> KernelRequest:
    """The best logits of each tile of a row, and its mass."""
    signature = {"logits_ptr": "*fp32", "sampling_ptr": "*i32", "key_ptr": "*i64", "mass_ptr": "*fp32"}
    constants = _constants(machine, vocab) | {"TILE": tile_size(vocab)}
    return KernelRequest("sample", "tile_bests", signature, constants, CompileOptions(8, 1, dependent_launch=True))


def draw(machine: Architecture, vocab: int) -> KernelRequest:
    """The token of each row."""
    signature = {
        "logits_ptr": "*fp32", "sampling_ptr": "*i32", "key_ptr": "*i64", "mass_ptr": "*fp32", "chosen_ptr": "*i32",
        "sampled_ptr": "*i32",
    }  # fmt: skip
    constants = _constants(machine, vocab)
    tiles = -(-vocab // tile_size(vocab))
    constants |= {"TILES_PAD": 1 << (tiles - 1).bit_length(), "BLOCK": 2048}
    return KernelRequest("sample", "draw", signature, constants, CompileOptions(8, 1, dependent_launch=True))


def _constants(machine: Architecture, vocab: int) -> dict[str, Constant]:
    return {
        "N": vocab, "TILES": -(-vocab // tile_size(vocab)), "LISTED": LISTED, "WORDS": SAMPLING_WORDS,
        "ID_BITS": vocab.bit_length(), "PDL": machine.dependent_launch,
    }  # fmt: skip


def sample(step: StepCalls, vocab: int, logits: Pointer, where: str) -> None:
    """Draw from the logits of the wanted rows, which stay where they are."""
    bests, last = tile_bests(step.machine, vocab), draw(step.machine, vocab)
    tiles, rows = -(-vocab // tile_size(vocab)), step.shape.rows
    keys = step.scratch(8 * rows * tiles * LISTED, "keys of the best logits of tiles")
    mass = step.scratch(8 * rows * tiles, "mass of tiles")
    options = Pointer(SAMPLING, 0)
    step.call(
        bests, (tiles, step.shape.row_count()), where, logits_ptr=logits, sampling_ptr=options, key_ptr=keys,
        mass_ptr=mass,
    )  # fmt: skip
    step.call(
        last, (step.shape.row_count(),), where, logits_ptr=logits, sampling_ptr=options, key_ptr=keys, mass_ptr=mass,
        chosen_ptr=Pointer(CHOSEN, 0), sampled_ptr=Pointer(SAMPLED, 0),
    )  # fmt: skip


def buffers() -> tuple[Buffer, ...]:
    """What steps that sample take and give beside the logits."""
    return (
        Buffer(SAMPLING, "input", ("mul", ROWS, 4 * SAMPLING_WORDS), "i32"),
        Buffer(CHOSEN, "output", ("mul", ROWS, 4), "i32"),
        Buffer(SAMPLED, "output", ("mul", ROWS, 4 * SAMPLED_WORDS), "i32"),
    )
