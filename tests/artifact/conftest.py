"""A small artifact, and the manifest that goes with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llamac.artifact.write import ArtifactWriter

BLOCK_BYTES = 1024
WEIGHTS = "weights/cpu-panel16.bin"


def make_manifest() -> dict[str, Any]:
    """A manifest with something under every key of the schema, without `members`."""
    return {
        "format": "llamac-artifact",
        "schema": 1,
        "producer": "llamac 0.1.0",
        "model": {
            "name": "tiny",
            "architecture": "llama",
            "source_format": "random",
            "license": None,
            "parameters": 600,
            "config": {"layers": 1},
            "context_length": 128,
            "vocab_size": 10,
        },
        "quantization": "keep",
        "passes": [{"name": "fuse-qkv", "options": {}, "changed": True, "counts": {"fused": 1}}],
        "targets": [
            {
                "name": "x86-64-v3",
                "kind": "cpu",
                "triple": "x86_64-linux-gnu.2.28",
                "requires": ["avx2", "fma"],
                "code": "code/x86-64-v3.so",
                "source": None,
                "layout": "cpu-panel16",
                "truth": "compiled",
            }
        ],
        "weights": [
            {
                "layout": "cpu-panel16",
                "member": WEIGHTS,
                "bytes": 2400,
                "tensors": [
                    {"name": "embed", "offset": 0, "bytes": 1000, "format": "f32", "shape": [10, 25]},
                    {"name": "norm", "offset": 1024, "bytes": 400, "format": "f32", "shape": [100]},
                    {"name": "head", "offset": 1472, "bytes": 928, "format": "bf16", "shape": [10, 46]},
                ],
            }
        ],
        "gpu": {
            "ir": "tokenizer/vocabulary.json",
            "passes": [],
            "memory": {"arena_bytes": 4096, "weight_bytes": 8192, "weight_bytes_per_token": 8192},
            "image": {"ir": "tokenizer/vocabulary.json", "passes": []},
        },
        "onnx": {"ir": "tokenizer/vocabulary.json", "passes": []},
        "image": {
            "ir": "tokenizer/vocabulary.json",
            "pixels": [1, 3, 4, 4],
            "embeddings": [4, 8],
            "joint": False,
            "passes": [],
        },
        "memory": {
            "arena_bytes": 4096,
            "kv_page_tokens": 256,
            "caches": [{"chunk": 0, "layers": [0, 1], "page_bytes": 65536}],
            "kv_dtype": "f32",
            "max_step_tokens": 64,
            "weight_bytes": 2400,
            "weight_bytes_per_token": 1428,
            "logits_bytes": 40,
        },
        "tokenizer": {
            "kind": "gguf-bpe",
            "files": {"vocabulary.json": "tokenizer/vocabulary.json"},
            "info": {"bos": 1},
        },
        "chat_template": None,
        "generation": {
            "bos_id": 1,
            "add_bos": True,
            "stop_ids": [2],
            "stop_sources": {"2": ["generation_config.json"]},
            "defaults": {"temperature": 0.6},
        },
        "golden": {"oracle": "absent", "vectors": [{"prompt_ids": [1], "greedy_ids": [2], "top": [[2, 1.5], [3, 0]]}]},
        "ledger": [{"kind": "default", "where": "head", "what": "kept in bf16", "reason": "the scheme keeps it"}],
    }


def write_small(path: Path, piece_bytes: int = 2400) -> Path:
    """Writes the small artifact, its weights in pieces of `piece_bytes`."""
    weights = np.random.default_rng(7).integers(0, 256, 2400, dtype=np.uint8)
    with ArtifactWriter(path, block_bytes=BLOCK_BYTES) as writer:
        writer.add_bytes("code/x86-64-v3.so", b"\x7fELF code " * 20)
        writer.add_bytes("tokenizer/vocabulary.json", b'["a", "b"]')
        with writer.open_stream(WEIGHTS, 2400) as stream:
            for start in range(0, 2400, piece_bytes):
                stream.write(weights[start : start + piece_bytes])
        writer.finish(make_manifest())
    return path


@pytest.fixture
def manifest() -> dict[str, Any]:
    return make_manifest()


@pytest.fixture
def write_artifact() -> Callable[..., Path]:
    return write_small


@pytest.fixture
def artifact_path(tmp_path: Path) -> Path:
    return write_small(tmp_path / "small.llamac")
