"""Runs whole models by their launch plans without a GPU: the steps that a runtime would make, launch by launch."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from llamac.artifact.launch_plan import SAMPLING_WORDS, LaunchPlan, attention_tiles
from llamac.artifact.launch_plan_file import write_plan
from llamac.artifact.read import Artifact

Array = np.ndarray[Any, Any]

SEQUENCES = 8
"""Rows of the page tables of a simulation, the last of them that of padding."""


@dataclass
class Rows:
    """What a step feeds: tokens with their sequences and positions, and the rows whose logits are wanted."""

    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    sequences: list[int] = field(default_factory=list)
    wanted: list[int] = field(default_factory=list)

    def add(self, sequence: int, start: int, ids: list[int], wanted: str = "all") -> Rows:
        """Feed `ids` of a sequence from position `start` on; wanted: the logits of all of them, or of the last."""
        first = len(self.ids)
        self.ids += ids
        self.positions += range(start, start + len(ids))
        self.sequences += [sequence] * len(ids)
        last = first + len(ids)
        self.wanted += range(first if wanted == "all" else last - 1, last)
        return self

    @property
    def longest_run(self) -> int:
        """Most tokens of one sequence."""
        return max(self.sequences.count(s) for s in set(self.sequences))


class PlanSimulator:
    """One model by one launch plan; pages of each sequence are fixed and shuffled."""

    def __init__(self, plan: LaunchPlan, weights: Path, offset: int, context: int) -> None:
        self.plan = plan
        program = Path(__file__).with_name("plan_process.py")
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, str(program)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
        )
        width = -(-context // plan.page_tokens)
        self.pages = width * (SEQUENCES - 1)
        self.tables: dict[str, Array] = {}
        variables = {"table_width": width}
        for number, cache in enumerate(plan.caches()):
            variables[f"pages.{cache.name}"] = self.pages
            order = np.random.default_rng(number).permutation(self.pages).astype(np.int32)
            padding = np.full((1, width), self.pages, np.int32)
            table = np.concatenate([order.reshape(SEQUENCES - 1, width), padding])
            self.tables[f"page_tables{cache.name.removeprefix('cache')}"] = table
        self._ask("load", write_plan(plan), weights, offset, variables)

    @classmethod
    def of_artifact(cls, path: Path, target: str, context: int = 64) -> PlanSimulator:
        """The simulation of a compiled file."""
        from llamac.artifact.launch_plan_file import read_plan

        with Artifact.open(path) as artifact:
            row = next(t for t in artifact.manifest["targets"] if t["name"] == target)
            plan = read_plan(artifact.member_bytes(row["code"]), row["code"])
            offset, _ = artifact.member_offset(plan.buffer("weights").member)
        return cls(plan, path, offset, context)

    def __enter__(self) -> PlanSimulator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=30)

    def encode(self, vision_tokens: int = 1, **inputs: Array) -> Array:
        """One run of the image encoder, inputs by the names of its arguments."""
        given = {f"image.{name}": values for name, values in inputs.items()}
        return np.asarray(self._ask("encode", given, {"vision_tokens": vision_tokens}))

    def step(self, rows: Rows, result: str = "logits", sampling: Array | None = None, **pictures: Array) -> Array:
        """Logits f32 [wanted, vocab], the best token of each wanted row, i32 [wanted], or what `sampling` draws.

        pictures: what the rows show of them, by the names of the step's inputs; nothing unless given.
        """
        shown = len(pictures.get("image_embeddings", ()))
        bucket = self.plan.choose(len(rows.ids), len(rows.wanted), rows.longest_run, shown > 0)
        ids, positions, sequences = list(rows.ids), list(rows.positions), list(rows.sequences)
        wanted = list(rows.wanted)
        if bucket.is_replayed:
            short = bucket.tokens - len(ids)
            ids, positions = ids + [0] * short, positions + [0] * short
            sequences += [SEQUENCES - 1] * short
            wanted += [0] * (bucket.rows - len(wanted))
        variables = {"tokens": len(ids), "rows": len(wanted), "sequences": SEQUENCES, "image_rows": shown}
        inputs = {
            "token_ids": ids, "positions": positions, "sequence_of_token": sequences, "logit_rows": wanted,
            **self.tables,
        }  # fmt: skip
        if sampling is not None:
            short = len(wanted) - len(sampling)
            inputs["sampling"] = np.concatenate([sampling, np.zeros((short, SAMPLING_WORDS), np.int32)])
        tiled = [b for b in self.plan.buffers if b.tile_tokens]
        if not bucket.is_replayed and tiled:
            tiles = attention_tiles(sequences, tiled[0].tile_tokens)
            most = min(len(ids), -(-len(ids) // tiled[0].tile_tokens) + SEQUENCES)
            inputs[tiled[0].name] = [*tiles, *[(0, 0)] * (most - len(tiles))]
        arrays = {name: np.asarray(values, np.int32) for name, values in inputs.items()}
        arrays |= self._shown(pictures, len(ids))
        found = self._ask("step", bucket.name, result, arrays, variables)
        kept = found[: len(rows.wanted)]
        return kept[:, 0] if result == "greedy" else kept

    def _shown(self, pictures: dict[str, Array], tokens: int) -> dict[str, Array]:
        """The inputs of a step that speak of pictures, filled up for rows of padding."""
        known = {b.name for b in self.plan.buffers if b.role == "input"}
        found = {}
        for name, nothing in (("image_rows", -1), ("vision_start", 0), ("vision_stop", 0)):
            if name in known:
                given = np.asarray(pictures.get(name, []), np.int32)
                found[name] = np.concatenate([given, np.full(tokens - len(given), nothing, np.int32)])
        if "image_embeddings" in pictures:
            found["image_embeddings"] = np.asarray(pictures["image_embeddings"], np.float32)
        return found

    def _ask(self, method: str, *arguments: Any) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        pickle.dump((method, arguments), self._process.stdin)
        self._process.stdin.flush()
        answer = pickle.load(self._process.stdout)
        if isinstance(answer, str):
            raise AssertionError(f"{method} failed in the simulation:\n{answer}")
        return answer
