"""The other engines: where their interpreters are, what they are built from, and the model files that they take.

Every engine lives in a virtual environment of its own, because their requirements exclude one another's.
`build_peers.py` makes them all below `.bench/`; an environment variable or an option of `compare.py` names another
interpreter.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from _llama_cpp import WORKER as LLAMA_CPP_WORKER
from _peer import Peer

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
FOLDER = ROOT / ".bench"
MODELS = FOLDER / "models"


@dataclass(frozen=True)
class Engine:
    """One peer. `packages` are pip's words; `build` is CMAKE_ARGS of a source build; `writer` makes its model files."""

    name: str
    variable: str
    packages: tuple[str, ...]
    worker: Path
    build: str | None = None
    writer: Path | None = None
    weights: str = "the same file"

    @property
    def python(self) -> str | None:
        """The interpreter that has it: the environment variable's, or that of `make bench-peers`; None without one."""
        built = FOLDER / self.name / "bin" / "python"
        return os.environ.get(self.variable) or (str(built) if built.exists() else None)

    @property
    def option(self) -> str:
        """The option that names its interpreter."""
        return "--" + self.name.replace(".", "-")


_LLAMA_CPP = ("--no-binary=llama-cpp-python", "--no-cache-dir", "llama-cpp-python==0.3.36")

ENGINES = {
    engine.name: engine
    for engine in (
        Engine(
            "llama.cpp",
            "LLAMAC_BENCH_LLAMA_CPP",
            _LLAMA_CPP,
            LLAMA_CPP_WORKER,
            build="-DGGML_NATIVE=ON",
        ),
        Engine(
            "openvino",
            "LLAMAC_BENCH_OPENVINO",
            ("openvino-genai==2026.4.1.0", "gguf>=0.19,<0.20"),
            HERE / "openvino_worker.py",
            writer=HERE / "openvino_model.py",
            weights="int4_sym of group 32 with the file's integers and scales, tables rounded to int8 a row",
        ),
        Engine(
            "onnxruntime",
            "LLAMAC_BENCH_ONNXRUNTIME",
            ("onnxruntime-genai==0.18.0", "onnx>=1.23,<2", "gguf>=0.19,<0.20"),
            HERE / "onnxruntime_worker.py",
            writer=HERE / "onnxruntime_model.py",
            weights="int4 of block 32 with the file's integers and scales, embedding f32, head rounded to int4",
        ),
        Engine(
            "llama.cpp-avx2",
            "LLAMAC_BENCH_LLAMA_CPP_AVX2",
            _LLAMA_CPP,
            LLAMA_CPP_WORKER,
            build="-DGGML_NATIVE=OFF -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_AVX_VNNI=OFF",
        ),
    )
}


def start(engine: Engine, python: str, source: Path, threads: int, tokens: int, sequences: int = 1) -> Peer:
    """The engine with the weights of the GGUF file `source`, in its own format."""
    if engine.writer is None:
        return Peer(engine.name, python, engine.worker, source, threads, tokens, sequences)
    return Peer(engine.name, python, engine.worker, prepared(engine, python, source), threads, tokens)


def prepared(engine: Engine, python: str, source: Path, *words: str) -> Path:
    """The folder with the engine's own form of a GGUF file, beside that file; written where it is missing."""
    assert engine.writer is not None
    folder = source.with_name("-".join([source.stem, engine.name, *(word.strip("-") for word in words)]))
    if not folder.is_dir():
        half = folder.with_name(folder.name + ".partial")
        shutil.rmtree(half, ignore_errors=True)
        print(f"writing {folder.name}", file=sys.stderr)
        subprocess.run([python, str(engine.writer), str(source), str(half), *words], check=True)
        half.rename(folder)
    return folder
