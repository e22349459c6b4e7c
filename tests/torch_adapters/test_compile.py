"""torch.compile with the llamac backend: the logits of eager, or one coded error that says what is in the way."""

from __future__ import annotations

import os
import shutil
import stat
import tomllib
import warnings
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch
from plain_forward import VOCABULARY, PlainForward, Spelling
from tiny_llama import TinyShape, make_reference, some_ids
from torch._dynamo.exc import BackendCompilerFailed

from llamac.errors import LlamacError
from llamac.torch import llamac_backend

TOLERANCE = 1e-5
"""Relative to the largest logit, in f32."""


@pytest.fixture(autouse=True)
def fresh(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No graphs of other tests; artifacts in a folder that the tests share."""
    base = tmp_path_factory.getbasetemp() / "compiled"
    monkeypatch.setenv("LLAMAC_CACHE_DIR", str(base))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    with torch.no_grad():
        yield
    torch._dynamo.reset()


def compiled(module: torch.nn.Module, *, dynamic: bool | None = None, **options: Any) -> Any:
    return torch.compile(module.eval(), backend=llamac_backend, dynamic=dynamic, options={"threads": 1, **options})


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    assert found.shape == expected.shape and found.dtype == expected.dtype
    return float((found - expected).abs().max() / expected.abs().max())


def rows(batch: int, length: int, vocabulary: int = VOCABULARY) -> torch.Tensor:
    return torch.tensor([some_ids(vocabulary, length, seed) for seed in range(batch)])


def refusal(module: torch.nn.Module, *inputs: Any, **options: Any) -> LlamacError:
    with pytest.raises(BackendCompilerFailed) as caught:
        compiled(module, **options)(*inputs)
    error = caught.value.inner_exception
    assert isinstance(error, LlamacError) and error.hint, error
    return error


@pytest.mark.parametrize("attention", [pytest.param("eager", marks=pytest.mark.slow), "sdpa"])
@pytest.mark.parametrize("dynamic", [True, pytest.param(None, marks=pytest.mark.slow)], ids=["open", "by-itself"])
def test_transformers(reference: Any, attention: str, dynamic: bool | None) -> None:
    """Any batch, any length, with and without padding; Dynamo leaves sizes open from the start or by itself."""
    reference.config._attn_implementation = attention
    module = compiled(reference, dynamic=dynamic, context=256)
    for batch, length in ((2, 9), (2, 5), (1, 7), (4, 27)):
        ids = rows(batch, length, 260)
        expected = reference(ids, use_cache=False).logits
        assert relative(module(input_ids=ids, use_cache=False).logits, expected) < TOLERANCE
    ids, mask = rows(2, 9, 260), torch.ones(2, 9, dtype=torch.int64)
    mask[1, :4] = 0
    expected = reference(ids, attention_mask=mask, use_cache=False).logits[mask.bool()]
    found = module(input_ids=ids, attention_mask=mask, use_cache=False).logits[mask.bool()]
    assert relative(found, expected) < TOLERANCE
    last = module(input_ids=ids, use_cache=False, logits_to_keep=1).logits
    assert relative(last, reference(ids, use_cache=False, logits_to_keep=1).logits) < TOLERANCE
    reference.config._attn_implementation = "eager"


@pytest.mark.parametrize(
    "shape",
    [TinyShape(tied=True, group=1, seed=5), TinyShape(scaled=False, kv_heads=1, group=4, seed=6)],
    ids=["tied-no-sharing", "plain-rope-one-kv-head"],
)
def test_other_shapes(shape: TinyShape) -> None:
    module = make_reference(shape)
    ids = rows(2, 11, shape.vocab)
    found = compiled(module, dynamic=True)(input_ids=ids, use_cache=False).logits
    assert relative(found, module(ids, use_cache=False).logits) < TOLERANCE


def test_bf16() -> None:
    """Two orders of summation in bf16 are a few percent apart."""
    module = make_reference(TinyShape(dtype="bf16")).to(torch.bfloat16)
    ids = rows(1, 11, 131)
    found = compiled(module)(input_ids=ids, use_cache=False).logits
    assert found.dtype == torch.bfloat16
    assert relative(found, module(ids, use_cache=False).logits) < 6e-2


@pytest.mark.parametrize(
    "spelling",
    [
        Spelling(),
        Spelling(mask="added", tables="buffers"),
        Spelling(mask="buffer"),
        Spelling(mask="buffer", tables="buffers", last=True),
        Spelling(ids="one", mask="added"),
        Spelling(turn="strides"),
        Spelling(turn="complex", tables="buffers"),
        Spelling(ids="one", tables="buffers", last=True),
    ],
    ids=str,
)
@pytest.mark.parametrize("dynamic", [True, False], ids=["open", "fixed"])
def test_written_by_hand(spelling: Spelling, dynamic: bool) -> None:
    plain = PlainForward(spelling)
    module = compiled(plain, dynamic=dynamic, context=128)
    for batch, length in ((3, 8), (2, 21)):
        ids = rows(batch, length)[0] if spelling.ids == "one" else rows(batch, length)
        assert relative(module(ids), plain(ids)) < TOLERANCE


def test_one_token_without_a_past() -> None:
    """A call of a fixed [batch, 1]: its only token stands at the first position, which nothing turns."""
    plain = PlainForward()
    ids = rows(2, 1)
    assert relative(compiled(plain, dynamic=False, context=64)(ids), plain(ids)) < TOLERANCE


def test_a_text_longer_than_what_was_checked() -> None:
    module = compiled(PlainForward(), dynamic=True, context=16)
    module(rows(1, 9))
    with pytest.raises(LlamacError, match="LLC0809"):
        module(rows(1, 17))


def test_a_window_shows_within_the_context_only() -> None:
    """What a mask does beyond the longest text does not matter; within it everything is checked."""
    windowed = PlainForward(Spelling(mask="window"))
    ids = rows(1, 9)
    assert relative(compiled(windowed, dynamic=True, context=100)(ids), windowed(ids)) < TOLERANCE
    torch._dynamo.reset()
    error = refusal(windowed, ids, dynamic=True, context=128)
    assert error.code == "LLC0957" and "is not the causal one" in error.reason


@pytest.mark.parametrize(
    ("spelling", "code", "where", "reason"),
    [
        (Spelling(odd="cumsum"), "LLC0314", "blocks.0", "inner = inner + inner.cumsum(-1)"),
        (Spelling(odd="gelu"), "LLC0314", "blocks.0", "functional.gelu"),
        (Spelling(odd="scaled"), "LLC0958", "the graph", "away from torch's own"),
        (Spelling(mask="none"), "LLC0958", "the graph", "away from torch's own"),
        (Spelling(odd="positions"), "LLC0957", "", "neither mask nor rotary table"),
        (Spelling(odd="break"), "LLC0957", "the graph", "plain_forward.py"),
    ],
    ids=lambda value: value.odd or value.mask if isinstance(value, Spelling) else None,
)
def test_what_is_no_llama(spelling: Spelling, code: str, where: str, reason: str) -> None:
    error = refusal(PlainForward(spelling), rows(2, 9), dynamic=True, context=64)
    assert error.code == code and reason in error.reason, error
    assert not where or error.where.endswith(where), error


def test_gradients_and_training(reference: Any) -> None:
    plain = PlainForward()
    with torch.enable_grad():
        error = refusal(plain, rows(1, 9))
    assert error.code == "LLC0957" and "torch.no_grad()" in error.hint
    torch._dynamo.reset()
    dropping = torch.nn.Sequential(plain, torch.nn.Dropout(0.5))
    with pytest.raises(BackendCompilerFailed, match=r"LLC0315.*call module.eval\(\)"):
        torch.compile(dropping.train(), backend=llamac_backend)(rows(1, 9))


def test_generate_without_a_cache(reference: Any, tmp_path: Path) -> None:
    """generate() recomputes in torch; here a longer text goes on from the one before. No code is in the cache yet."""
    ids = rows(2, 9, 260)
    options = {"max_new_tokens": 8, "do_sample": False, "use_cache": False, "eos_token_id": None}
    expected = reference.generate(ids, attention_mask=torch.ones_like(ids), **options)
    plain_forward = reference.forward
    reference.forward = torch.compile(plain_forward, backend=llamac_backend, options={"threads": 1, "cache": tmp_path})
    try:
        found = reference.generate(ids, attention_mask=torch.ones_like(ids), **options)
    finally:
        reference.forward = plain_forward
    assert torch.equal(found, expected)


def test_changed_weights_are_noticed() -> None:
    plain, ids = PlainForward(), rows(1, 9)
    module = compiled(plain)
    module(ids)
    plain.out.weight.mul_(2)
    with pytest.raises(LlamacError, match=r"LLC0958 l_self_.*out.*torch.compiler.reset"):
        module(ids)
    torch.compiler.reset()
    assert relative(compiled(plain)(ids), plain(ids)) < TOLERANCE


def test_fallback_warns() -> None:
    plain, ids = PlainForward(Spelling(odd="cumsum")), rows(1, 9)
    with pytest.warns(UserWarning, match="torch runs the graph itself: LLC0314"):
        found = compiled(plain, fallback="eager")(ids)
    assert relative(found, plain(ids)) < TOLERANCE


@pytest.fixture(scope="module")
def kept_code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the code of `PlainForward(seed=9)`."""
    folder = tmp_path_factory.mktemp("kept") / "code"
    with torch.no_grad():
        compiled(PlainForward(seed=9), cache=folder)(rows(1, 9))
    return folder


def test_code_is_kept_and_used_again(kept_code: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import llamac.driver

    (path,) = kept_code.iterdir()
    assert stat.S_IMODE(kept_code.stat().st_mode) == 0o700 and stat.S_IMODE(path.stat().st_mode) == 0o600

    def never(*arguments: Any, **options: Any) -> None:
        raise AssertionError("compiled again")

    monkeypatch.setattr(llamac.driver, "compile", never)
    plain, ids = PlainForward(seed=9), rows(1, 9)
    assert relative(compiled(plain, cache=kept_code)(ids), plain(ids)) < TOLERANCE


@pytest.mark.parametrize("what", ["folder", "file", "link", "blocked"])
def test_untrusted_code(what: str, kept_code: Path, tmp_path: Path) -> None:
    folder = tmp_path / "code"
    if what == "blocked":
        folder.write_text("a file")
    else:
        shutil.copytree(kept_code, folder)
        (path,) = folder.iterdir()
        if what == "link":
            path.rename(tmp_path / "elsewhere")
            path.symlink_to(tmp_path / "elsewhere")
        else:
            os.chmod(folder if what == "folder" else path, 0o777)
    assert refusal(PlainForward(seed=9), rows(1, 9), cache=folder).code == "LLC0959"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"fallbak": "eager"}, "did you mean 'fallback'"),
        ({"fallback": "inductor"}, "is unknown"),
        ({"context": 1}, "at least 2"),
        ({"threads": True}, "at least 1"),
        ({"keep": -1}, "at least 0"),
    ],
)
def test_bad_options(options: dict[str, Any], reason: str) -> None:
    module = torch.compile(PlainForward().eval(), backend=llamac_backend, options=options)
    with pytest.raises(BackendCompilerFailed, match=f"LLC0957.*{reason}"):
        module(rows(1, 9))


def test_a_mode_of_another_backend() -> None:
    with pytest.raises(BackendCompilerFailed, match="LLC0957 mode"):
        torch.compile(PlainForward().eval(), backend=llamac_backend, mode="reduce-overhead")(rows(1, 9))


def test_the_name_of_the_backend() -> None:
    """What pyproject names is the backend: `backend="llamac"` finds it in an installed llamac."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    value = project["entry-points"]["torch_dynamo_backends"]["llamac"]
    assert EntryPoint("llamac", value, "torch_dynamo_backends").load() is llamac_backend


def test_nothing_is_said_when_all_is_well() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        compiled(PlainForward(), dynamic=True)(rows(2, 9))
