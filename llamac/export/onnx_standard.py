"""`--to onnx`: a folder with model.onnx in standard operators, its weights, and what transformers' loaders want.

A model that sees has three graphs instead, named as transformers.js and optimum name them: vision_encoder.onnx,
embed_tokens.onnx and decoder_model_merged.onnx.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from .onnx_check import check_logits, check_model, check_weights
from .onnx_graph import emitted_parts, write_graphs
from .onnx_picture_check import check_pictures
from .request import Check, ExportRequest


def write(request: ExportRequest, place: Path) -> None:
    """Write the folder; see `llamac.backends.onnx` for the graphs' form."""
    write_graphs(request, emitted_parts(request), place)


def check(request: ExportRequest, place: Path) -> Iterator[Check]:
    """onnx.checker, every weight, and the logits that ONNX Runtime computes: with a picture where the model sees."""
    decided = list(request.ledger)
    exports = emitted_parts(request)
    request.ledger[:] = decided  # it was said when the graphs were written
    for export in exports:
        yield check_model(place, export.emitted.file)
        yield check_weights(request, export, place)
    yield from check_pictures(request, place) if len(exports) > 1 else check_logits(request, place)
