"""The ONNX Runtime target of a compilation: a graph of ONNX Runtime's operators, and its weights as a member."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamac.artifact.write import ArtifactWriter
from llamac.backends.onnx.contributed import emit_contributed
from llamac.backends.onnx.emit import Emitted, emit_vision
from llamac.backends.onnx.emitter import Settings
from llamac.errors import LlamacError
from llamac.image_side import has_encoder, raised_encoder
from llamac.ir.evaluator import WeightEvaluator
from llamac.ir.graph import Module
from llamac.ir.printer import print_module
from llamac.models.checkpoint import Checkpoint
from llamac.models.graph import build_graph
from llamac.passes.pipelines import Quantization, onnx_pipeline
from llamac.target import Target
from llamac.transform.base import LedgerEntry, PassContext
from llamac.transform.outside import Edit
from llamac.transform.pipeline import PassRecord, run_pipeline

from .layer_kinds import is_uniform, layer_counts
from .manifest_entries import pass_entry

if TYPE_CHECKING:
    from .compiled_graph import CompiledGraph

ENCODER_MEMBER = "onnx/vision_encoder.onnx"
GRAPH_MEMBER, IR_MEMBER = "onnx/model.onnx", "ir/step.onnx.ir"
LAYOUT = "onnx"
WEIGHTS_MEMBER = f"weights/{LAYOUT}.bin"
COPY_BYTES = 8 << 20

FORMATS = {
    "FLOAT": "f32",
    "FLOAT16": "f16",
    "BFLOAT16": "bf16",
    "FLOAT8E4M3FN": "e4m3fn",
    "INT8": "i8",
    "UINT8": "u8",
}
"""Element types of ONNX as the manifest names them."""


@dataclass(frozen=True)
class OnnxSide:
    """What the ONNX Runtime target is made of: the model-level graph, and the ONNX graph emitted from it."""

    target: Target
    module: Module
    records: list[PassRecord]
    emitted: Emitted
    checkpoint: Checkpoint
    encoder: Emitted | None = None
    """The image encoder, its weights in the file of the step's."""

    @property
    def weight_bytes(self) -> int:
        """Bytes of the member of weights, which ends at a page."""
        return -(-self.emitted.data.nbytes // 4096) * 4096

    def write(self, writer: ArtifactWriter, memory: int, progress: Callable[[int], None]) -> None:
        """Write graph, IR and weights; these are laid out beside the file first, since some are turned (LLC0702)."""
        with tempfile.TemporaryDirectory(prefix=".llamac-onnx-", dir=writer.path.parent) as folder:
            path = Path(folder) / "weights"
            self._lay_out(path, memory // 4, progress)
            with writer.open_stream(WEIGHTS_MEMBER, self.weight_bytes) as stream, path.open("rb") as file:
                while block := file.read(COPY_BYTES):
                    stream.write(block)
                stream.pad_to(4096)
        writer.add_bytes(GRAPH_MEMBER, self.emitted.model.SerializeToString(deterministic=True))
        if self.encoder is not None:
            writer.add_bytes(ENCODER_MEMBER, self.encoder.model.SerializeToString(deterministic=True))
        writer.add_bytes(IR_MEMBER, print_module(self.module).encode())

    def _lay_out(self, path: Path, memory: int, progress: Callable[[int], None]) -> None:
        try:
            self.emitted.data.write(path, WeightEvaluator(self.checkpoint.read_rows), memory, progress)
        except OSError as error:
            reason = (
                f"{self.weight_bytes} bytes of weights cannot be laid out in {path.parent.parent}: {error.strerror}"
            )
            hint = "free as much again as the file will have, or write it elsewhere"
            raise LlamacError("LLC0702", path.parent.parent.name, reason, hint) from error

    def manifest_entry(self) -> dict[str, Any]:
        """What the manifest says of the graph: its IR and its passes."""
        found = {"ir": IR_MEMBER, "passes": [pass_entry(record) for record in self.records]}
        return found | ({"encoder": ENCODER_MEMBER} if self.encoder is not None else {})

    def entries(self) -> list[dict[str, Any]]:
        """The target as the manifest lists it."""
        target = self.target
        entry = {
            "name": target.name,
            "kind": target.kind,
            "triple": target.triple,
            "requires": list(target.requires),
            "code": GRAPH_MEMBER,
            "source": IR_MEMBER,
            "layout": target.layout,
            "truth": "generated",
        }
        return [entry]

    def weights_entry(self) -> dict[str, Any]:
        """The weights as the manifest lists them, by the names of the graph's initializers."""
        tensors = [
            {
                "name": t.name,
                "offset": t.offset,
                "bytes": t.nbytes,
                "format": FORMATS.get(t.element, t.element.lower()),
                "shape": list(t.dims),
            }
            for t in self.emitted.data.tensors
        ]
        return {"layout": LAYOUT, "member": WEIGHTS_MEMBER, "bytes": self.weight_bytes, "tensors": tensors}


def onnx_side(
    checkpoint: Checkpoint,
    targets: Sequence[Target],
    compiled: CompiledGraph,
    edit: Edit,
    captured: Module | None = None,
) -> OnnxSide:
    """The side of the target: the model in its own pipeline, and the graph. LLC0930 to LLC0932 as for `--to onnx`.

    `captured` is the graph where it came through another front door than the config. What it cannot do, and that its
    cache holds f32, goes to the ledger of `compiled`.
    """
    config, ledger = checkpoint.config, compiled.context.ledger
    sees = captured is None and has_encoder(config, checkpoint.tensors)
    if compiled.kv_dtype != "f32":
        what = f"f32 on ONNX Runtime, {compiled.kv_dtype} elsewhere"
        ledger.append(LedgerEntry("note", "cache", what, "its graph takes and gives keys and values in f32"))
    text = config if sees or config.cross_layers else replace(config, vision=None)
    module = captured or build_graph(text, checkpoint.tensors)
    uniform = is_uniform(text, checkpoint.tensors)
    steps = onnx_pipeline(layer_counts(text), compiled.quantization, uniform, joined=True)
    context = PassContext(checkpoint.read_rows, [])
    records = run_pipeline(module, edit(steps), context)
    ledger += [entry for entry in context.ledger if entry not in ledger]
    settings = Settings("all", _accuracy(compiled.quantization), compiled.limits.context)

    def note(kind: str, where: str, what: str, reason: str) -> None:
        made = LedgerEntry(kind, where, what, reason)
        if made not in ledger:
            ledger.append(made)

    properties = {"llamac.quantization": str(compiled.quantization), "llamac.model": checkpoint.name}
    emitted = emit_contributed(module, settings, note, properties)
    encoder = None
    if sees:
        # What is said of the encoder's weights was said when llamac's own was made.
        image = raised_encoder(config, checkpoint.tensors, compiled.quantization, PassContext(checkpoint.read_rows, []))
        encoder = emit_vision(image, note, properties, emitted.data)
    return OnnxSide(targets[0], module, records, emitted, checkpoint, encoder)


def _accuracy(quantization: Quantization) -> int:
    """The accuracy_level of MatMulNBits: activations rounded to 8 bits, as llamac's own code for integers has them."""
    return 4 if quantization.scheme in ("int8", "int4", "keep") else 1
