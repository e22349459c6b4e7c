"""`--to onnx`: a folder with model.onnx in standard operators, its weights, and what transformers' loaders want."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from .onnx_check import check_logits, check_model, check_weights
from .onnx_graph import emitted_graph, write_graph
from .request import Check, ExportRequest


def write(request: ExportRequest, place: Path) -> None:
    """Write the folder; see `llamac.backends.onnx` for the graph's form."""
    write_graph(request, emitted_graph(request, contributed=False), place)


def check(request: ExportRequest, place: Path) -> Iterator[Check]:
    """onnx.checker, every weight, and the logits that ONNX Runtime computes."""
    export = emitted_graph(request, contributed=False)
    yield check_model(place)
    yield check_weights(request, export, place)
    yield from check_logits(request, place)
