"""The code of other systems in an artifact that is retargeted: TVM's, made from the CPU's graph, and ONNX Runtime's.

TVM's code works on the graph and the weights of CPU targets, so it can be made of what a file holds. The graph of ONNX
Runtime and its weights come from a checkpoint alone: they stay as they are, or go.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llamac.artifact.read import Artifact
from llamac.artifact.tvm_plan import read_tvm_plan
from llamac.artifact.write import ArtifactWriter
from llamac.errors import LlamacError
from llamac.models.llama.config_json import config_from_json
from llamac.target import SIDE_OF_KIND, Target

from .compiled_graph import CompiledGraph
from .onnx_side import LAYOUT as ONNX_LAYOUT
from .tvm_side import tvm_side

TVM, ONNX = "tvm", "onnx"
GUESTS = (TVM, ONNX)
COMPILE = "compile the checkpoint with all targets"


@dataclass
class Guests:
    """What a file will hold besides llamac's own code: rows by name, None for `made`; members of new code."""

    rows: Mapping[str, dict[str, Any] | None]
    made: tuple[Target, ...]
    code: dict[str, bytes] = field(default_factory=dict)
    entries: dict[str, dict[str, Any]] = field(default_factory=dict)

    def kept(self, side: str) -> list[dict[str, Any]]:
        """The rows of a side that stay."""
        return [row for row in self.rows.values() if row is not None and SIDE_OF_KIND.get(row["kind"]) == side]

    @property
    def has_tvm(self) -> bool:
        """Whether there is code of TVM, which needs the graph and the weights of CPU targets."""
        return bool(self.made or self.kept(TVM))

    @property
    def has_onnx(self) -> bool:
        return bool(self.kept(ONNX))

    def build(self, compiled: CompiledGraph, manifest: Mapping[str, Any]) -> None:
        """Make the code of new targets (LLC0940 to LLC0944); what it lacks goes to the graph's ledger."""
        side = tvm_side(compiled, self.made, config_from_json(manifest["model"]["config"]))
        built = side.build()
        self.code = built.members
        compiled.context.ledger.extend(built.ledger)
        self.entries = {row["name"]: row for row in side.entries()}

    def write_code(self, writer: ArtifactWriter, source: Artifact) -> None:
        """TVM's members: plans, and what they name."""
        for row in self.kept(TVM):
            for name in tvm_members(source, row["code"]):
                writer.copy_member(source, name)
        for name, data in self.code.items():
            writer.add_bytes(name, data)

    def write_onnx(self, writer: ArtifactWriter, source: Artifact) -> None:
        """The graph of ONNX Runtime, its IR and its weights, as they lie."""
        for row in self.kept(ONNX):
            writer.copy_member(source, onnx_weights(source.manifest)["member"])
            writer.copy_member(source, row["code"])
            entry = source.manifest["onnx"]
            for name in (entry["ir"], entry.get("encoder")):
                if name is not None:
                    writer.copy_member(source, name)


def tvm_members(source: Artifact, name: str) -> list[str]:
    """A plan of TVM behind every member that it names, the image encoder's plan too: the order of `compile`."""
    found = list[str]()
    for member in read_tvm_plan(source.member_bytes(name), name).members:
        found += tvm_members(source, member) if member.endswith(".json") else [member]
    return list(dict.fromkeys([*found, name]))


def check_guests(source: Artifact, made: Sequence[Target], left: Sequence[str]) -> None:
    """Refuse what the file's graphs do not allow (LLC0614). left: the sides of all rows in the end."""
    has_cpu = any(row["layout"] == "cpu-panel16" for row in source.manifest["weights"])
    for target in made:
        side = SIDE_OF_KIND[target.kind]
        if side == ONNX:
            raise LlamacError("LLC0614", target.name, "its graph and weights are made from a checkpoint only", COMPILE)
        if side == TVM and not has_cpu:
            reason = "its code works on the weights of CPU targets, which the file does not hold"
            raise LlamacError("LLC0614", target.name, reason, COMPILE)
    is_alone = {row["layout"] for row in source.manifest["weights"]} == {ONNX_LAYOUT}
    if is_alone and made:
        reason = "the file holds weights as ONNX Runtime wants them alone, and no graph for other code"
        raise LlamacError("LLC0614", made[0].name, reason, COMPILE)
    if not is_alone and set(left) == {ONNX}:
        reason = "its memory plan is counted for the weights of the other targets"
        raise LlamacError(
            "LLC0614", "onnxruntime", reason, "keep another target, or compile the checkpoint for it alone"
        )


def onnx_weights(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest's row about the weights of ONNX Runtime."""
    return dict(next(row for row in manifest["weights"] if row["layout"] == ONNX_LAYOUT))


def without(ledger: Sequence[dict[str, Any]], gone: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The ledger without what it says of guests that are taken out."""
    names = {row["name"] for row in gone}
    words = ["ONNX Runtime"] if any(SIDE_OF_KIND.get(row["kind"]) == ONNX for row in gone) else []
    return [e for e in ledger if e["where"] not in names and not any(word in e["what"] for word in words)]
