"""The artifact as an op of torch graphs: torch's own checks of it, traced, compiled and exported modules."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny_llama import some_ids

from llamac.errors import LlamacError
from llamac.torch import LlamacModel, step, use_artifact

IDS = torch.tensor([some_ids(200, 23, 1), some_ids(190, 23, 2)])


@pytest.fixture(autouse=True)
def in_use(model: LlamacModel) -> Iterator[None]:
    use_artifact("tiny", model)
    yield
    use_artifact("tiny", None)


class Ranked(torch.nn.Module):
    """Something around an artifact: temperature, and the best tokens."""

    def forward(self, input_ids: torch.Tensor, temperature: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = torch.ops.llamac.step("tiny", input_ids, None, True)[:, -1] / temperature
        best = torch.softmax(logits, dim=-1).topk(3)
        return best.values, best.indices


def test_logits(model: LlamacModel) -> None:
    assert torch.equal(step("tiny", IDS), model(IDS).logits)
    assert torch.equal(step("tiny", IDS, last=True), model(IDS, logits_to_keep=1).logits)


def test_padding(model: LlamacModel) -> None:
    mask = torch.ones_like(IDS)
    mask[0, :5] = 0
    mask[1, 20:] = 0
    assert torch.equal(step("tiny", IDS, mask), model(IDS, attention_mask=mask).logits)


@pytest.mark.parametrize("last", [False, True])
def test_torch_s_own_checks(last: bool) -> None:
    torch.library.opcheck(torch.ops.llamac.step.default, ("tiny", IDS, torch.ones_like(IDS), last))
    torch.library.opcheck(torch.ops.llamac.step.default, ("tiny", IDS[:, :1]), {"last": last})


def test_compiled_in_one_graph() -> None:
    module, heat = Ranked(), torch.tensor(0.7)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True, dynamic=True)
    for ids in (IDS, IDS[:, :9], IDS[:1, :14]):
        for own, expected in zip(compiled(ids, heat), module(ids, heat), strict=True):
            assert torch.equal(own, expected)
    torch.compiler.reset()


def test_exported_and_loaded(tmp_path: Path) -> None:
    batch, columns = torch.export.Dim("batch"), torch.export.Dim("columns")
    heat = torch.tensor(0.7)
    program = torch.export.export(Ranked(), (IDS, heat), dynamic_shapes=({0: batch, 1: columns}, None))
    torch.export.save(program, tmp_path / "ranked.pt2")
    loaded = torch.export.load(tmp_path / "ranked.pt2").module()
    short = IDS[:, :11].repeat(2, 1)
    for own, expected in zip(loaded(short, heat), Ranked()(short, heat), strict=True):
        assert torch.equal(own, expected)


def test_a_loop_computes_only_what_is_new(model: LlamacModel, monkeypatch: pytest.MonkeyPatch) -> None:
    device = model.artifact.session.device
    fed: list[int] = []
    whole = device.step

    def counted(token_ids: object, *rest: object) -> None:
        fed.append(len(token_ids))  # type: ignore[arg-type]
        whole(token_ids, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(device, "step", counted)
    for length in range(10, 20):
        found = step("tiny", IDS[:, :length], last=True)
        assert torch.equal(found, model(IDS[:, :length], logits_to_keep=1).logits)
        own = sum(fed) - 2 * length  # the model's call computes all of both rows
        assert own == (20 if length == 10 else 2)
        fed.clear()
    branch = torch.cat([IDS[:1, :12], torch.tensor([[7]])], dim=1)
    step("tiny", branch, last=True)
    assert sum(fed) == 1


def test_more_texts_than_pages(artifact: Path) -> None:
    """Texts that are only kept for later give way."""
    with LlamacModel.from_artifact(artifact, threads=1, sequences=1, context=512) as small:
        use_artifact("small", small)
        for seed in range(5):
            ids = torch.tensor([some_ids(200, 300, seed)])
            assert torch.equal(step("small", ids, last=True), small_logits(small, ids))
        use_artifact("small", None)


def small_logits(model: LlamacModel, ids: torch.Tensor) -> torch.Tensor:
    use_artifact("small", model)  # gives the pages back
    found: torch.Tensor = model(ids, logits_to_keep=1, use_cache=False).logits
    return found


def test_refusals() -> None:
    with pytest.raises(LlamacError, match=r"LLC0956.*did you mean 'tiny'"):
        step("tinny", IDS)
    for ids in (IDS[0], IDS.float(), IDS[:, :0]):
        with pytest.raises(LlamacError, match=r"LLC0956.*expected token ids"):
            step("tiny", ids)
    with pytest.raises(LlamacError, match="LLC0956 attention_mask"):
        step("tiny", IDS, torch.ones(2, 22))
