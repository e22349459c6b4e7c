"""bench/quality.py: its figures against other ways to compute them, and the whole way on a tiny model."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import quality
import torch
from _reference import ArtifactReference, TransformersReference

import llamac


def _logits(rows: int, vocab: int, seed: int) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal((rows, vocab)) * 4).astype(np.float32)


def test_figures_agree_with_torch() -> None:
    reference, found = _logits(200, 97, 0), _logits(200, 97, 1)
    following = [int(i) for i in np.random.default_rng(2).integers(0, 97, 200)]
    result = quality.summarize(quality.compare(reference, found, following))
    p, q = (torch.from_numpy(x).double().log_softmax(1) for x in (reference, found))
    divergence = torch.nn.functional.kl_div(q, p, log_target=True, reduction="none").sum(1)
    assert result["kl_mean"] == pytest.approx(float(divergence.mean()), rel=1e-12)
    assert result["kl_median"] == pytest.approx(float(np.median(divergence.numpy())), rel=1e-12)
    assert result["kl_p99"] == pytest.approx(float(np.percentile(divergence.numpy(), 99)), rel=1e-12)
    loss = torch.nn.functional.cross_entropy(torch.from_numpy(found).double(), torch.tensor(following))
    assert result["perplexity"] == pytest.approx(math.exp(float(loss)), rel=1e-12)
    assert result["top1_agreement"] == float((p.argmax(1) == q.argmax(1)).double().mean())
    assert result["positions"] == 200


def test_a_case_worked_by_hand() -> None:
    p, q = [0.5, 0.25, 0.25], [0.25, 0.5, 0.25]
    reference, found = (np.log(np.array([row], np.float32)) + 7 for row in (p, q))  # a common shift changes nothing
    result = quality.compare(reference, found, [2])
    assert result.divergence[0] == pytest.approx(0.25 * math.log(2), rel=1e-6)
    assert not result.agrees[0]
    assert (math.exp(-result.surprise[0]), math.exp(-result.reference_surprise[0])) == pytest.approx((0.25, 0.25))


def test_equal_logits_diverge_by_nothing() -> None:
    logits = _logits(70, 50, 3)
    result = quality.summarize(quality.compare(logits, logits, [0] * 70))
    assert (result["kl_max"], result["top1_agreement"], result["perplexity_ratio"]) == (0.0, 1.0, 1.0)


def test_very_unlikely_tokens_stay_finite() -> None:
    reference, found = np.zeros((1, 4), np.float32), np.array([[0, -2000, 0, 0]], np.float32)
    result = quality.compare(reference, found, [1])
    assert result.divergence[0] == pytest.approx(500, rel=1e-2)
    assert result.surprise[0] == pytest.approx(2000, rel=1e-2)


def test_windows() -> None:
    ids = list(range(10))
    assert quality.windows(ids, None, 4) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert quality.windows(ids[:9], None, 4) == [[0, 1, 2, 3], [4, 5, 6, 7]]  # one token predicts nothing
    assert quality.windows(ids[:4], 99, 4) == [[99, 0, 1, 2], [99, 3]]


def test_the_text_is_what_it_was() -> None:
    """Figures of different days are comparable only while the text stays the same."""
    import hashlib

    assert hashlib.sha256(quality.TEXT.read_bytes()).hexdigest() == TEXT_SHA256


TEXT_SHA256 = "757608edacc82aacf37fb9f9fcee6d40fb92ed2128499548c911425d1dafd0bf"


def test_an_artifact_against_both_references(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = {scheme: tmp_path / f"{scheme}.llamac" for scheme in ("f32", "int4")}
    for scheme, path in paths.items():
        llamac.compile(tiny_checkpoint, output=path, quantize=scheme, tokenizer=False)
    reads_numbers = SimpleNamespace(encode=lambda text: [int(word) for word in text.split()])
    monkeypatch.setattr("llamac.runtime.model.Model.tokenizer", reads_numbers)
    text = " ".join(str(i) for i in np.random.default_rng(0).integers(0, 157, 90))
    references = [ArtifactReference(paths["f32"]), TransformersReference(tiny_checkpoint)]
    exact = quality.measure(paths["f32"], references[1], text, 32, None)
    assert exact["kl_max"] < 1e-8
    assert (exact["top1_agreement"], exact["windows"], exact["positions"]) == (1.0, 3, 87)
    ours, theirs = (quality.measure(paths["int4"], reference, text, 32, None) for reference in references)
    assert ours["kl_mean"] == pytest.approx(theirs["kl_mean"], rel=1e-3)
    assert 1e-4 < ours["kl_mean"] < 1
    assert ours["windows"] == 3
    assert quality.measure(paths["int4"], references[0], text, 32, 1)["positions"] == 31


def test_a_lossy_reference_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "int8.llamac"
    llamac.compile(tiny_checkpoint, output=path, quantize="int8", tokenizer=False)
    with pytest.raises(SystemExit, match="compiled with --quantize f32"):
        ArtifactReference(path)
