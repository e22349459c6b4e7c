"""The kernel-level graphs of an artifact, read back from it: what more code is generated from without a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llamac.analysis.weight_plan import ALIGNMENT, member_bytes, plan_weights
from llamac.artifact.read import Artifact
from llamac.backends.cpu.codegen import Limits
from llamac.errors import LlamacError
from llamac.ir.graph import FileSource, Module
from llamac.ir.layouts import LAYOUT
from llamac.ir.parser import parse_module
from llamac.ir.printer import print_module
from llamac.models.checkpoint import Checkpoint, GenerationDefaults, StoredTensor
from llamac.models.llama.config import LlamaConfig
from llamac.models.llama.config_json import config_from_json
from llamac.models.llama.weights import expected_shapes
from llamac.passes.pipelines import Share, parse_quantization, target_pipeline
from llamac.target import GPU_LAYOUT
from llamac.transform.base import LedgerEntry, PassContext
from llamac.transform.canonical import canonical_text
from llamac.transform.pipeline import PassRecord

from .compiled_graph import CompiledGraph, compile_graph
from .gpu_side import ALIGNMENT as GPU_ALIGNMENT
from .layer_kinds import is_uniform, layer_counts
from .manifest_entries import weights_entry
from .repack import COMPILE_AGAIN, StoredWeights

LAYOUTS = {"cpu": LAYOUT, "gpu": GPU_LAYOUT}
"""Side of an artifact -> the layout of its weights."""

ALIGNMENTS = {"cpu": ALIGNMENT, "gpu": GPU_ALIGNMENT}


@dataclass(frozen=True)
class StoredGraphs:
    """The sides of an open artifact, "cpu" and "gpu", each with weights, IR and passes of its own."""

    artifact: Artifact

    @property
    def manifest(self) -> dict[str, Any]:
        """What the artifact says of itself."""
        return self.artifact.manifest

    @property
    def ranks(self) -> int:
        """Among how many processes the file divides the model."""
        return ranks_in(self.manifest)

    def has(self, side: str) -> bool:
        """Whether there are weights in the layout of a side."""
        return bool(self.all_weights(side))

    @property
    def main(self) -> str:
        """The side that the manifest speaks of first."""
        return "cpu" if self.has("cpu") else "gpu"

    def weights(self, side: str) -> dict[str, Any]:
        """The manifest's row about the weights of a side, those of the first rank where the model is divided."""
        return self.all_weights(side)[0]

    def all_weights(self, side: str) -> list[dict[str, Any]]:
        """The rows about the weights of a side, one a rank."""
        name, ranks = LAYOUTS[side], self.ranks
        layouts = [name] if ranks == 1 else [f"{name}.{rank}of{ranks}" for rank in range(ranks)]
        rows = {row["layout"]: row for row in self.manifest["weights"]}
        return [rows[layout] for layout in layouts if layout in rows]

    def ir_member(self, side: str) -> str:
        """The member with the IR of a side (LLC0614 where it is not kept)."""
        found = self.manifest.get("ir") if side == self.main else self.manifest.get("gpu", {}).get("ir")
        if found is None:
            reason = "it keeps no IR, from which more code could be generated"
            raise LlamacError("LLC0614", str(self.artifact.path), reason, COMPILE_AGAIN)
        return str(found)

    def passes(self, side: str) -> list[dict[str, Any]]:
        """The passes of a side, as the manifest has them."""
        return list(self.manifest["passes"] if side == self.main else self.manifest["gpu"]["passes"])

    def memory(self, side: str) -> dict[str, int]:
        """What differs between the sides in the memory plan."""
        memory = self.manifest["memory"] if side == self.main else self.manifest["gpu"]["memory"]
        return {name: memory[name] for name in ("arena_bytes", "weight_bytes", "weight_bytes_per_token")}

    def image(self, side: str) -> dict[str, Any] | None:
        """What the manifest says of the image encoder of a side; None where there is none."""
        entry = self.manifest.get("image")
        if entry is None or side == self.main:
            return entry
        own = self.manifest.get("gpu", {}).get("image")
        return {**entry, **own} if own is not None else None

    def graph(self, side: str) -> CompiledGraph:
        """The graph of a side that is there (LLC0614 where its weights would now lie elsewhere than they do)."""
        module = self._module(self.ir_member(side))
        image = self._image(side)
        placed = plan_weights(*filter(None, (module, image)), alignment=ALIGNMENTS[side])
        model, memory, arena = self.manifest["model"], self.manifest["memory"], self.memory(side)["arena_bytes"]
        weight_bytes = member_bytes(placed, ALIGNMENTS[side])
        limits = Limits(model["vocab_size"], model["context_length"], memory["max_step_tokens"], arena, weight_bytes)
        quantization = parse_quantization(self.manifest["quantization"])
        context = PassContext(_no_checkpoint, self.ledger())
        encoder: tuple[Module, list[PassRecord]] | None = (image, []) if image is not None else None
        found = CompiledGraph(module, [], context, placed, limits, quantization, memory["kv_dtype"], encoder)
        self._check_places(side, found)
        return self._with_others(side, found) if self.ranks > 1 else found

    def _with_others(self, side: str, first: CompiledGraph) -> CompiledGraph:
        """The first rank's graph with that of the second, which for GPUs has code of its own, all others' too.

        The file holds the IR of the first one alone. The other's is made by the passes, which must still give the first
        one's (LLC0614). For CPUs all ranks run the same code.
        """
        if side == "cpu":
            return first
        config = replace(config_from_json(self.manifest["model"]["config"]), vision=None)
        checkpoint, length = self._checkpoint(first.module, config), self.manifest["model"]["context_length"]
        steps, quantization, kv = first.limits.max_tokens, first.quantization, first.kv_dtype
        made = [
            compile_graph(
                checkpoint, quantization, kv, steps, length, self.ledger(), kind=side, share=Share(self.ranks, rank)
            )
            for rank in range(2)
        ]
        if print_module(made[0].module) != print_module(first.module):
            reason = "this llamac's passes give the first rank another graph than the file holds"
            raise LlamacError("LLC0614", str(self.artifact.path), reason, COMPILE_AGAIN)
        for row in self.all_weights(side)[1:]:
            self._check_row(row, made[1])
        return replace(first, others=(made[1],))

    def ledger(self) -> list[LedgerEntry]:
        """The entries of the ledger, a new list."""
        return [LedgerEntry(**entry) for entry in self.manifest["ledger"]]

    def other_graph(self, side: str) -> tuple[CompiledGraph, StoredWeights]:
        """The graph of a side that is not there yet, and what evaluates its weights from those of the other side.

        The passes run again over the captured graph of the stored configuration. LLC0615 where a weight cannot be had
        exactly, or where the passes were not these.
        """
        if self.ranks > 1:
            reason = "the file has each rank's weights in one layout, from which the ranks' of another are not made"
            raise LlamacError("LLC0615", LAYOUTS[side], reason, "compile the checkpoint with all targets")
        there = self.graph(self.main)
        checkpoint = self._checkpoint(there.module, config_from_json(self.manifest["model"]["config"]))
        self._check_passes(checkpoint, there)
        if checkpoint.config.vision is not None and (side == "cpu" or "image" in self.manifest):
            reason = "the weights of an image encoder are packed from a checkpoint only"
            raise LlamacError("LLC0615", "vision", reason, COMPILE_AGAIN)
        memory, context = self.manifest["memory"]["max_step_tokens"], self.manifest["model"]["context_length"]
        made = compile_graph(
            checkpoint, there.quantization, there.kv_dtype, memory, context, there.context.ledger, kind=side
        )
        held = StoredWeights(there.placed, self.artifact.map(self.weights(self.main)["member"]))
        for item in made.placed:
            held.check(item.weight)
        self._check_graph(checkpoint, there)
        there.context.ledger.append(_repacked(LAYOUTS[side], LAYOUTS[self.main]))
        return made, held

    def _module(self, member: str) -> Module:
        text = self.artifact.member_bytes(member).decode("utf-8", errors="replace")
        return parse_module(text, f"{self.artifact.path}:{member}")

    def _image(self, side: str) -> Module | None:
        entry = self.image(side)
        return self._module(entry["ir"]) if entry is not None else None

    def _check_places(self, side: str, found: CompiledGraph) -> None:
        self._check_row(self.weights(side), found)

    def _check_row(self, row: dict[str, Any], found: CompiledGraph) -> None:
        entry = weights_entry(row["member"], found)
        if entry != row:
            pairs = zip(entry["tensors"], row["tensors"], strict=False)
            differs = next((now["name"] for now, then in pairs if now != then), "the size of the member")
            reason = f"this llamac would place the weights of {row['layout']} differently ({differs})"
            raise LlamacError("LLC0614", str(self.artifact.path), reason, COMPILE_AGAIN)

    def _checkpoint(self, module: Module, config: LlamaConfig) -> Checkpoint:
        """The configuration, and how each weight was stored; no weight can be read from it."""
        sources = {
            w.source.tensor: w.source.encoding for w in module.weights.values() if isinstance(w.source, FileSource)
        }
        tensors = {}
        for name, shape in expected_shapes(config).items():
            if name not in sources:
                reason = "the stored IR does not say how the checkpoint held it"
                raise LlamacError("LLC0615", name, reason, COMPILE_AGAIN)
            tensors[name] = StoredTensor(name, name, shape, sources[name], Path(), 0, 0)
        name, source = self.manifest["model"]["name"], self.manifest["model"]["source_format"]
        return Checkpoint(config, tensors, source, None, None, GenerationDefaults(), name, None, [], _NoRows())

    def _check_graph(self, checkpoint: Checkpoint, there: CompiledGraph) -> None:
        """LLC0615 where the stored configuration gives another graph than the file holds: a captured one, say."""
        memory, context = there.limits.max_tokens, there.limits.context
        made = compile_graph(checkpoint, there.quantization, there.kv_dtype, memory, context, [], kind=self.main)
        if canonical_text(made.module) != canonical_text(there.module):
            reason = "its graph is not the one that its configuration gives, from which the other side would be made"
            raise LlamacError("LLC0615", str(self.artifact.path), reason, COMPILE_AGAIN)

    def _check_passes(self, checkpoint: Checkpoint, there: CompiledGraph) -> None:
        config, steps = checkpoint.config, self.manifest["memory"]["max_step_tokens"]
        uniform = is_uniform(config, checkpoint.tensors)
        pipeline = target_pipeline(self.main, layer_counts(config), there.quantization, there.kv_dtype, steps, uniform)
        if [step.run.name for step in pipeline] != [row["name"] for row in self.passes(self.main)]:
            reason = "other passes made it than this llamac has, so its weights may mean something else"
            raise LlamacError("LLC0615", str(self.artifact.path), reason, COMPILE_AGAIN)


def ranks_in(manifest: Mapping[str, Any]) -> int:
    """Among how many processes a file divides its model."""
    return max((len(row.get("ranks") or [""]) for row in manifest["targets"]), default=1)


def _repacked(layout: str, source: str) -> LedgerEntry:
    what = f"packed from the weights of {source}, not from the checkpoint"
    return LedgerEntry(
        "repacked", f"weights/{layout}.bin", what, "llamac retarget; quants, scales and values are equal"
    )


def _no_checkpoint(name: str, lo: int, hi: int) -> Any:
    raise LlamacError("LLC0615", name, "a pass wants its values, and there is no checkpoint", COMPILE_AGAIN)


class _NoRows:
    """The row source of a checkpoint that is not there."""

    def read(self, tensor: StoredTensor, lo: int, hi: int) -> Any:
        """LLC0615."""
        return _no_checkpoint(tensor.name, lo, hi)
