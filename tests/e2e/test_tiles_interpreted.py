"""Whole models in code for AMX, its tiles in plain C (`tests/backends/tile_model.h`), against the IR's interpreter."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from interpreted import kernel_graph, kernel_logits
from numpy.typing import NDArray
from stepping import in_chunks
from tiny_llama import TinyShape, make_reference, save_checkpoint

import llamac
from llamac.artifact.read import Artifact
from llamac.backends.cpu.toolchain import compile_shared_library
from llamac.models.sources import open_source
from llamac.runtime import loader
from llamac.target import TARGETS

MODEL = (Path(__file__).parents[1] / "backends" / "tile_model.h").read_text(encoding="utf-8")
ALLOWED = "#include <sys/syscall.h>\n#include <unistd.h>\n#define syscall(...) 0\n"
"""The system of this machine has no tiles to give permission for."""
SHAPE = TinyShape(group=3, head_dim=32, dtype="f32", width=96, inner=100, vocab=131, context=512)
IDS = [int(i) for i in np.random.default_rng(2).integers(0, SHAPE.vocab, 50)]


def _lacks() -> list[str]:
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    flags = text.split("flags", 1)[1].split("\n", 1)[0].split()
    return [flag for flag in TARGETS["znver4"].requires if flag not in flags]


@pytest.mark.slow
@pytest.mark.skipif(bool(_lacks()), reason=f"this processor lacks {', '.join(_lacks())}, which the other half needs")
@pytest.mark.parametrize("scheme", ["bf16", "fp8", "int4"])
def test_logits_of_the_interpreter(scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Near them, as for any target; and the same bits however the prompt is cut: 50 rows, 17, 16, one."""
    folder = save_checkpoint(make_reference(SHAPE), SHAPE, tmp_path / "checkpoint")
    path, checkpoint = tmp_path / "m.llamac", open_source(folder)
    options = {"quantize": scheme, "kv": "f32", "max_step_tokens": 64, "validate": False, "tokenizer": False}
    llamac.compile(folder, target="znver4", output=path, **options)
    plain = _whole(path)
    with Artifact.open(path) as artifact:
        source = artifact.member_bytes(artifact.manifest["targets"][0]["source"]).decode()
    sources = {"model.c": MODEL + ALLOWED + source}
    compile_shared_library(sources, triple=TARGETS["znver4"].triple, cpu="znver4", out=tmp_path / "tiles.so")
    load = loader.load_library
    monkeypatch.setattr(loader, "load_library", lambda code, where: load((tmp_path / "tiles.so").read_bytes(), where))
    found = _whole(path)
    expected = kernel_logits(checkpoint, kernel_graph(checkpoint, scheme, "f32"), IDS)
    # Rounded activations tip over now and then, in code for any target: about as much as in that without tiles.
    wrong, usual = (np.abs(logits - expected).mean() / np.abs(expected).mean() for logits in (found, plain))
    assert wrong < 2 * usual + 1e-3 and wrong < 3e-2, (wrong, usual)
    if scheme == "int4":
        assert found.tobytes() == plain.tobytes(), "integer tiles give the bits of every other instruction set"
    else:
        assert found.tobytes() != plain.tobytes(), "the tiles of bf16 have a chain of their own: were they used?"
    with llamac.load(path, threads=3) as model:
        for sizes in ((17, 16, 1), (1,)):
            assert in_chunks(model, IDS, sizes).tobytes() == found.tobytes()


def _whole(path: Path) -> NDArray[np.float32]:
    with llamac.load(path, threads=2) as model:
        return in_chunks(model, IDS, (len(IDS),))
