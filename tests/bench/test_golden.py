"""Golden vectors: made by the outside oracle, found by content, passed by a right compile, failed by a wrong one."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import golden as program
import numpy as np
import pytest
from _reference import TransformersReference

import llamac
import llamac.driver
from llamac.golden import DATA, fingerprint
from llamac.models.checkpoint import Checkpoint
from llamac.models.sources import open_source
from llamac.runtime.golden import Verdict, replay

Change = Callable[[Checkpoint], None]


def _other_theta(checkpoint: Checkpoint) -> None:
    checkpoint.config = dataclasses.replace(checkpoint.config, rope_theta=checkpoint.config.rope_theta / 10)


def _other_pairs(checkpoint: Checkpoint) -> None:
    styles = {"half_split": "interleaved", "interleaved": "half_split"}
    checkpoint.config = dataclasses.replace(checkpoint.config, rope_style=styles[checkpoint.config.rope_style])


def _swapped(first: str, second: str) -> Change:
    def change(checkpoint: Checkpoint) -> None:
        tensors = checkpoint.tensors
        pair = dataclasses.replace(tensors[second], name=first), dataclasses.replace(tensors[first], name=second)
        tensors[first], tensors[second] = pair

    return change


MISTAKES: dict[str, Change] = {
    "rope theta": _other_theta,
    "rope pairs": _other_pairs,
    "gate and up": _swapped("layers.1.mlp.gate", "layers.1.mlp.up"),
    "queries of two layers": _swapped("layers.0.attn.q", "layers.1.attn.q"),
}


def _verify(source: str | Path, output: Path, scheme: str, golden: Path | None = None) -> list[Verdict]:
    llamac.compile(source, output=output, quantize=scheme, golden=golden, tokenizer=not isinstance(source, Path))
    with llamac.load(output) as model:
        assert model.manifest["golden"]["oracle"].startswith("transformers")
        return replay(model)


def _with_mistake(monkeypatch: pytest.MonkeyPatch, change: Change) -> None:
    def opened(*arguments: object, **options: object) -> Checkpoint:
        checkpoint = open_source(*arguments, **options)  # type: ignore[arg-type]
        change(checkpoint)
        return checkpoint

    monkeypatch.setattr(llamac.driver, "open_graph", opened)


@pytest.fixture(scope="module")
def tiny_golden(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Vectors of the tiny model for f32 and int8."""
    reference = TransformersReference(tiny_checkpoint)
    prompts = [np.random.default_rng(seed).integers(0, 157, 20).tolist() for seed in range(3)]
    sets = {}
    for scheme in ("f32", "int8"):
        reference.set_matrices(*program.SCHEMES[scheme])
        sets[scheme] = [program.make_vector(reference, ids) for ids in prompts]
    path = tmp_path_factory.mktemp("golden") / "golden.json"
    found = {"oracle": reference.name, "vectors": sets.pop("f32"), "quantized": sets}
    path.write_text(program.to_text(found), encoding="utf-8")
    assert json.loads(path.read_text()) == found
    return path


@pytest.mark.parametrize("scheme", ["f32", "int8"])
def test_a_right_compile_passes(tiny_checkpoint: Path, tiny_golden: Path, tmp_path: Path, scheme: str) -> None:
    verdicts = _verify(tiny_checkpoint, tmp_path / "m.llamac", scheme, tiny_golden)
    assert [verdict.passed for verdict in verdicts] == [True] * 3, verdicts


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_wrong_compile_fails(
    tiny_checkpoint: Path, tiny_golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mistake: str
) -> None:
    _with_mistake(monkeypatch, MISTAKES[mistake])
    verdicts = _verify(tiny_checkpoint, tmp_path / "m.llamac", "f32", tiny_golden)
    assert not any(verdict.passed for verdict in verdicts), verdicts


def test_a_scheme_without_vectors_of_its_own_has_none(tiny_checkpoint: Path, tiny_golden: Path, tmp_path: Path) -> None:
    options = {"output": tmp_path / "m.llamac", "quantize": "int4:g64", "golden": tiny_golden, "tokenizer": False}
    manifest = llamac.compile(tiny_checkpoint, **options).manifest  # type: ignore[arg-type]
    assert manifest["golden"] == {"oracle": "absent", "vectors": []}
    assert any("int4:g64" in entry["reason"] for entry in manifest["ledger"] if entry["where"] == "golden")


def test_the_packaged_vectors_belong_to_smollm2() -> None:
    checkpoint = open_source("smollm2-135m")
    stored = json.loads((DATA / "golden-smollm2-135m.json").read_text(encoding="utf-8"))
    assert (stored["model"], stored["fingerprint"]) == (checkpoint.name, fingerprint(checkpoint))
    assert set(stored["quantized"]) == {"bf16", "f16", "fp8", "int8", "int4"}
    sets = [stored["vectors"], *stored["quantized"].values()]
    assert all(len(rows) == 4 and min(len(row["greedy_ids"]) for row in rows) >= 16 for rows in sets)
    _swapped("layers.3.attn.q", "layers.4.attn.q")(checkpoint)
    assert fingerprint(checkpoint) != stored["fingerprint"]


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["keep", "f32", "bf16", "f16", "fp8", "int8", "int4"])
def test_smollm2_passes(tmp_path: Path, scheme: str) -> None:
    verdicts = _verify("smollm2-135m", tmp_path / "m.llamac", scheme)
    assert all(verdict.passed for verdict in verdicts), verdicts


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["keep", "int8", "int4"])
@pytest.mark.parametrize("mistake", MISTAKES)
def test_smollm2_with_a_mistake_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str, mistake: str
) -> None:
    _with_mistake(monkeypatch, MISTAKES[mistake])
    # The mistake must not keep the packaged vectors from being found.
    verdicts = _verify("smollm2-135m", tmp_path / "m.llamac", scheme, DATA / "golden-smollm2-135m.json")
    assert not all(verdict.passed for verdict in verdicts), verdicts
