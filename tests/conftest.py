"""What the whole suite shares: the toy artifact, a complete `.llamac` file around 100 lines of C (tests/toy/toy.c)."""

from __future__ import annotations

import copy
import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("llamac", reason="llamac is not installed: pip install -e '.[test]'")

TOY = Path(__file__).parent / "toy"
BOS, EOS, VOCAB, CONTEXT = 256, 257, 260, 160


def toy_logits(ids: list[int]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """What tests/toy/toy.c computes, [len(ids), VOCAB]: the reference of the runtime's tests."""
    rows = np.empty((len(ids), VOCAB), np.float32)
    history = 1
    for row, token in zip(rows, ids, strict=True):
        history = (history * 31 + token) % 65521
        row[:] = ((history + np.arange(VOCAB) * 17) % 97).astype(np.float32) / np.float32(97)
        row[(token + 1) % VOCAB] = 10
    return rows


def _tokenizer_json() -> bytes:
    """Ids 0..255 are the bytes, so text and ids can be read off one another; 256.. are control tokens."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    vocabulary = {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}
    plain = ("single_word", "lstrip", "rstrip")
    names = ["<bos>", "<eos>", "<|user|>", "<|assistant|>"]
    added = [
        {"id": 256 + n, "content": name, "special": True, "normalized": False} | dict.fromkeys(plain, False)
        for n, name in enumerate(names)
    ]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    model = {"type": "BPE", "vocab": vocabulary, "merges": [], "byte_fallback": False, "dropout": None}
    document = {"version": "1.0", "added_tokens": added, "pre_tokenizer": level, "decoder": level, "model": model}
    return json.dumps(document | {"normalizer": None, "post_processor": None}).encode()


CHAT_TEMPLATE = (
    "{{ bos_token }}{% if tools %}T{% endif %}"
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def _manifest() -> dict[str, Any]:
    target: dict[str, Any] = {
        "name": "host",
        "kind": "cpu",
        "triple": f"{platform.machine()}-linux-gnu",
        "requires": [],
        "code": "code/host.so",
        "source": None,
        "layout": "toy",
        "truth": "executed",
    }
    tensor = {"name": "embed", "offset": 0, "bytes": 4096, "format": "f32", "shape": [32, 32]}
    prompt = list(b"ab")
    top = np.argsort(-toy_logits(prompt)[-1], kind="stable")[:3]
    return {
        "format": "llamac-artifact",
        "schema": 1,
        "producer": "llamac tests",
        "model": {
            "name": "toy",
            "architecture": "llama",
            "source_format": "random",
            "license": None,
            "parameters": 4096,
            "config": {"hidden_size": 64, "layers": 1},
            "context_length": CONTEXT,
            "vocab_size": VOCAB,
        },
        "quantization": "keep",
        "passes": [{"name": "fuse-gqa", "options": {}, "changed": True, "counts": {"fused": 1}}],
        "targets": [target],
        "weights": [{"layout": "toy", "member": "weights/toy.bin", "bytes": 4096, "tensors": [tensor]}],
        "memory": {
            "arena_bytes": 128,
            "kv_page_tokens": 4,
            "caches": [{"chunk": 0, "layers": [0], "page_bytes": 64}],
            "kv_dtype": "f32",
            "max_step_tokens": 8,
            "weight_bytes": 4096,
            "weight_bytes_per_token": 4096,
            "logits_bytes": 4 * VOCAB,
        },
        "tokenizer": {
            "kind": "tokenizer.json",
            "files": {"tokenizer.json": "tokenizer/tokenizer.json"},
            "info": {"bos_id": BOS, "eos_id": EOS, "add_bos": False},
        },
        "chat_template": "tokenizer/chat_template.jinja",
        "generation": {
            "bos_id": BOS,
            "add_bos": False,
            "stop_ids": [EOS],
            "stop_sources": {str(EOS): ["tests"]},
            "defaults": {},
        },
        "golden": {
            "oracle": "absent",
            "vectors": [
                {
                    "prompt_ids": prompt,
                    "greedy_ids": [99, 100, 101, 102],
                    "top": [[int(i), float(toy_logits(prompt)[-1][i])] for i in top],
                }
            ],
        },
        "ledger": [{"kind": "default", "where": "model", "what": "context 160", "reason": "tests"}],
    }


@dataclass
class Toy:
    """Makes toy artifacts in a temporary folder; `edit` changes the manifest, `code` replaces the shared library."""

    folder: Path
    code: bytes
    count: int = field(default=0)

    def make(self, edit: Callable[[dict[str, Any]], None] | None = None, code: bytes | None = None) -> Path:
        """Write one artifact and return its path."""
        from llamac.artifact.write import ArtifactWriter

        manifest = copy.deepcopy(_manifest())
        if edit is not None:
            edit(manifest)
        self.count += 1
        path = self.folder / f"toy{self.count}.llamac"
        with ArtifactWriter(path) as writer:
            for target in manifest["targets"]:
                writer.add_bytes(target["code"], self.code if code is None else code)
            writer.add_bytes("tokenizer/tokenizer.json", _tokenizer_json())
            writer.add_bytes("tokenizer/chat_template.jinja", CHAT_TEMPLATE.encode())
            weights = bytes([7]) + bytes(4095)
            stream = writer.open_stream("weights/toy.bin", len(weights))
            stream.write(weights)
            writer.finish(manifest)
        return path


def _compile(output: Path, abi_version: int) -> bytes:
    compiler = ["cc"] if shutil.which("cc") else [sys.executable, "-m", "ziglang", "cc"]
    flags = ["-O1", "-shared", "-fPIC", "-fvisibility=hidden", f"-DABI_VERSION={abi_version}"]
    subprocess.run([*compiler, *flags, "-o", str(output), str(TOY / "toy.c")], check=True)
    return output.read_bytes()


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    """The maker of toy artifacts."""
    folder = tmp_path_factory.mktemp("toy")
    return Toy(folder, _compile(folder / "toy.so", 3))


@pytest.fixture(scope="session")
def toy_artifact(toy: Toy) -> Path:
    """One toy artifact as it is, shared by every test that only reads it."""
    return toy.make()


@pytest.fixture(scope="session")
def code_of_abi_1(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The toy's code, saying that it speaks native interface 1."""
    return _compile(tmp_path_factory.mktemp("abi1") / "toy.so", 1)


@pytest.fixture(name="toy_logits")
def toy_logits_fixture() -> Callable[[list[int]], np.ndarray[Any, np.dtype[np.float32]]]:
    """The numpy reference of the toy model."""
    return toy_logits
