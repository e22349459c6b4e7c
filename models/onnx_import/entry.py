"""The third front door: an ONNX model, made by whatever exporter -> `CapturedModel`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from llamac.errors import LlamacError
from llamac.ir.builder import Builder
from llamac.ir.graph import Module
from llamac.ir.verifier import verify

from ..capture.captured import CapturedModel
from ..capture.roles import name_weights
from ..checkpoint import Checkpoint
from ..hf_text import read_text_files
from ..ledger import LedgerEntry, entry
from ..license import find_license
from ..llama.config import LlamaConfig
from ..llama.declared_weights import declare_weights
from ..llama.weights import HF, check_weights
from .agreement import agreed
from .config_beside import find_config
from .importer import Import
from .matrix import DecodedRows, Matrix
from .packed import Packed
from .proto import OnnxModel, read_onnx
from .signature import read_signature, unlike

SUFFIX = ".onnx"


def onnx_file(path: Path) -> Path | None:
    """The ONNX model that a path means: the file itself, or the one in a folder that has no weights of another form."""
    if path.is_file():
        return path if path.suffix == SUFFIX else None
    if not path.is_dir() or next(path.glob("*.safetensors"), None) or next(path.glob("*.gguf"), None):
        return None
    files = sorted(path.glob(f"*{SUFFIX}"))
    if len(files) > 1 and (path / "model.onnx") in files:
        return path / "model.onnx"
    if len(files) > 1:
        reason = f"{len(files)} ONNX models in one folder: {', '.join(file.name for file in files[:4])}"
        raise LlamacError("LLC0201", path.name, reason, "pass one of them")
    return files[0] if files else None


def open_onnx(path: Path) -> CapturedModel:
    """Import the model in `path`, a file that `onnx_file` has found; weights stay where they are.

    Raises LLC0935 for an op that is not imported, LLC0936 for a damaged file, LLC0937 for what is no step of a Llama;
    LLC02xx, LLC03xx and LLC0318 as for other sources.
    """
    model = read_onnx(path)
    try:
        return _captured(path, model)
    except LlamacError:
        raise
    except Exception as error:  # a graph that is put together wrong can fail in more ways than anybody looks for
        raise unlike(model, f"it cannot be imported ({type(error).__name__}: {str(error)[:200]})") from error


def _captured(path: Path, model: OnnxModel) -> CapturedModel:
    sign = read_signature(model)
    config, raw, ledger = find_config(model, sign)
    made = Import(model, sign, config, ledger)
    module = made.run()
    module.step.remove_dead_ops()
    module.remove_dead_weights()
    config = agreed(module, _with_head(module, config, ledger), path.name, ledger)
    renamed = name_weights(module, config)
    matrices = {renamed[name]: matrix for name, matrix in made.matrices.items() if name in renamed}
    _declare_packed(module, matrices)
    verify(module)
    ledger.append(entry("note", path.name, _origin(model), "the ONNX graph is what is compiled"))
    return CapturedModel(module, _checkpoint(path, config, raw, matrices, ledger))


def _origin(model: OnnxModel) -> str:
    opsets = ", ".join(f"{domain or 'ai.onnx'} {version}" for domain, version in sorted(model.opsets.items()))
    return f"made by {model.producer[:80] or 'an unnamed exporter'}, opsets {opsets}"


def _with_head(module: Module, config: LlamaConfig, ledger: list[LedgerEntry]) -> LlamaConfig:
    """Whether the head is the embedding is what the graph says: exporters copy a tied table to turn it."""
    tables = [op.operands[0] for op in module.step.ops if op.opcode == "embedding"]
    turned = [op.operands[0] for op in module.step.ops if op.opcode == "transpose"]
    is_tied = any(table in turned for table in tables)
    if is_tied != config.tied_head:
        what = "tied to the embedding" if is_tied else "a matrix of its own"
        ledger.append(entry("note", "head", what, "the config says otherwise, the graph counts"))
    return replace(config, tied_head=is_tied)


def _declare_packed(module: Module, matrices: dict[str, Matrix]) -> None:
    """Weights of integers and scales, declared as the config front door declares them."""
    before, module.weights = module.weights, {}
    builder = Builder(module)
    for name, weight in before.items():
        matrix = matrices.get(name)
        if matrix is None or not isinstance(matrix.source, Packed):
            module.add_weight(weight)
            continue
        declare_weights(builder, {name: matrix.stored(name)})
        for graph in module.graphs.values():
            graph.replace(weight, module.weights[name])


def _checkpoint(
    path: Path, config: LlamaConfig, raw: dict[str, object], matrices: dict[str, Matrix], ledger: list[LedgerEntry]
) -> Checkpoint:
    text = read_text_files(path.parent, raw, config.vocab_size)
    stored = {name: matrix.stored(name) for name, matrix in matrices.items()}
    readers = {part: read for name, matrix in matrices.items() for part, read in matrix.readers(name).items()}
    return Checkpoint(
        config=config,
        tensors=check_weights(config, stored, HF),
        format="onnx",
        tokenizer=text.tokenizer,
        chat_template=text.chat_template,
        generation=text.generation,
        name=config.name,
        license=find_license(path.parent),
        ledger=[*ledger, *text.ledger],
        row_source=DecodedRows(readers),
    )
