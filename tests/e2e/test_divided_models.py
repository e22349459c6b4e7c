"""Models that several processes share: the logits of one process, and of transformers; and what can go wrong."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stepping import in_chunks, side_by_side
from tiny_llama import Floats, TinyShape, make_reference, reference_logits, relative_error, save_checkpoint, some_ids
from tiny_llama4 import Tiny4, make_model, save_model
from tiny_llama4 import reference_logits as llama4_logits

import llamac
from llamac.artifact.read import Artifact
from llamac.artifact.verify import verify_file
from llamac.certificate import replay
from llamac.errors import LlamacError
from llamac.retarget import retarget
from llamac.runtime.device_ranks import LeadingDevice
from llamac.runtime.model import Model
from llamac.runtime.session import Feed

IDS = some_ids(131, 300)
"""Over a page of the cache."""

DENSE = TinyShape(group=2, kv_heads=4, head_dim=16, inner=128, vocab=132, width=64)
WHOLE_HEAD = TinyShape(group=4, kv_heads=1, head_dim=32, inner=128, vocab=131, tied=True, width=64)
LLAMA4 = Tiny4(expert_inner=128, step=1, chunk=40, top_k=2, vocab=132)

CASES = {
    "f32": (DENSE, "f32", 2),
    "f32 on 4": (DENSE, "f32", 4),
    "one kv head": (WHOLE_HEAD, "f32", 2),
    "int4": (DENSE, "int4", 2),
    "llama 4": (LLAMA4, "f32", 2),
    "llama 4 in int4": (LLAMA4, "int4", 2),
}
F32_BOUND = 1e-5
INT4_BOUND = 2e-2
"""Activations are rounded to 8 bits before a product: sums in another order tip a few of them to the next integer."""


class Divided:
    """A checkpoint, its artifact for one process, and the one for several."""

    def __init__(self, name: str, folder: Path) -> None:
        self.shape, self.scheme, self.ranks = CASES[name]
        source = folder / "source"
        if isinstance(self.shape, Tiny4):
            self.reference: Any = make_model(self.shape)
            source = save_model(self.reference, self.shape, source)
            self.expected = llama4_logits(self.reference, IDS)
        else:
            self.reference = make_reference(self.shape)
            save_checkpoint(self.reference, self.shape, source)
            self.expected = reference_logits(self.reference, IDS)
        self.paths = {n: folder / f"{n}.llamac" for n in (1, self.ranks)}
        for ranks, path in self.paths.items():
            target = "cpu" if ranks == 1 else f"cpu:{ranks}"
            options = {"quantize": self.scheme, "kv": "f32", "tokenizer": False, "max_step_tokens": 160}
            llamac.compile(source, target=target, output=path, validate=False, **options)

    def load(self, ranks: int, **options: Any) -> Model:
        return llamac.load(self.paths[ranks], threads=ranks, context=512, sequences=3, **options)


@pytest.fixture(scope="module")
def divided(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Divided]:
    """The models of a case, made once."""
    made: dict[str, Divided] = {}

    def of(name: str) -> Divided:
        if name not in made:
            made[name] = Divided(name, tmp_path_factory.mktemp("divided"))
        return made[name]

    return of


def greedy(model: Model, count: int) -> list[int]:
    """Tokens after the first of IDS."""
    sequence, found = model.session.open(), []
    logits = model.session.prefill(sequence, IDS[:20])
    for _ in range(count):
        found.append(int(logits.argmax()))
        logits = model.session.step([Feed(sequence, [found[-1]])])[0]
    sequence.close()
    return found


@pytest.mark.parametrize("name", CASES)
def test_ranks_give_the_logits_of_one(divided: Callable[[str], Divided], name: str) -> None:
    """Prefill over two pages, then greedy tokens; both also beside transformers."""
    case = divided(name)
    with case.load(1) as one, case.load(case.ranks) as several:
        assert isinstance(several.session.device, LeadingDevice)
        expected, found = one.session.all_logits(IDS), several.session.all_logits(IDS)
        bound = F32_BOUND if case.scheme == "f32" else INT4_BOUND
        assert relative_error(found, expected) < bound
        assert greedy(several, 24) == greedy(one, 24)
        if case.scheme == "f32":
            assert relative_error(found, case.expected) < 2e-5
        else:
            # Dividing costs nothing beside what int4 does anyway.
            errors = [float(np.sqrt(np.mean(np.square(x - case.expected)))) for x in (found, expected)]
            assert errors[0] < 1.02 * errors[1]


def test_ragged_steps_and_forks(divided: Callable[[str], Divided]) -> None:
    """Sequences side by side, in steps of any size, and one that two sequences share until they part."""
    case = divided("llama 4")
    prompts = [IDS[:70], IDS[90:130], IDS[200:201]]
    with case.load(1) as one, case.load(2) as two:
        cuts = [[30, 1, 39], [40], [1]]
        for a, b in zip(side_by_side(two, prompts, cuts), side_by_side(one, prompts, cuts), strict=True):
            assert relative_error(a, b) < F32_BOUND
        assert relative_error(in_chunks(two, IDS, (7, 1, 160)), one.session.all_logits(IDS)) < F32_BOUND
        assert relative_error(forked(two), forked(one)) < F32_BOUND


def forked(model: Model) -> Floats:
    """Two ways on from one beginning."""
    first = model.session.open()
    model.session.prefill(first, IDS[:50])
    second = model.session.fork(first)
    found = [model.session.step([Feed(first, [3]), Feed(second, [9])]) for _ in range(2)]
    first.close()
    second.close()
    return np.concatenate(found)


def test_what_is_in_the_file(divided: Callable[[str], Divided], tmp_path: Path) -> None:
    """Weights for each rank, once; code once; every byte checked; the same bytes again."""
    case = divided("f32 on 4")
    with Artifact.open(case.paths[4], "full") as artifact:
        manifest = artifact.manifest
        (target,) = manifest["targets"]
        assert target["name"].endswith(":4") and target["layout"] == target["ranks"][0] == "cpu-panel16.0of4"
        assert [row["layout"] for row in manifest["weights"]] == target["ranks"]
        assert len({row["bytes"] for row in manifest["weights"]}) == 1
        assert [name for name in artifact.members if name.endswith(".so")] == [target["code"]]
        with Artifact.open(case.paths[1]) as whole:
            share = manifest["weights"][0]["bytes"] / whole.manifest["weights"][0]["bytes"]
            pages = [m["memory"]["caches"][0]["page_bytes"] for m in (manifest, whole.manifest)]
        assert 0.25 < share < 0.5 and pages[0] * 4 == pages[1]
    assert not verify_file(case.paths[4])


def test_the_certificate_covers_the_division(divided: Callable[[str], Divided], tmp_path: Path) -> None:
    """Recorded and replayed: two ranks of the small model beside the whole one."""
    source = divided("int4").paths[1].parent / "source"
    path = tmp_path / "m.llamac"
    manifest = llamac.compile(source, target="cpu:2", output=path, quantize="int4", tokenizer=False).manifest
    recorded = manifest["certificate"]["rank_verdicts"]
    assert recorded[0]["after"] == "shard-tensors" and all(v["passed"] for v in recorded)
    assert len(replay(manifest["certificate"])) == len(recorded) + len(manifest["certificate"]["verdicts"])


def test_a_rank_that_dies(divided: Callable[[str], Divided]) -> None:
    """One coded error at the next step, at once; and closing still works."""
    model = divided("f32").load(2)
    device = model.session.device
    assert isinstance(device, LeadingDevice)
    sequence = model.session.open()
    model.session.prefill(sequence, IDS[:10])
    device._others[0]._process.kill()
    device._others[0]._process.wait()
    started = time.perf_counter()
    with pytest.raises(LlamacError) as found:
        model.session.step([Feed(sequence, [1])])
    assert found.value.code == "LLC0868" and time.perf_counter() - started < 5
    model.close()
    with pytest.raises(LlamacError, match="LLC0815"):
        model.session.step([Feed(sequence, [1])])


def test_no_process_is_left_behind(divided: Callable[[str], Divided]) -> None:
    with divided("f32 on 4").load(4) as model:
        device = model.session.device
        assert isinstance(device, LeadingDevice)
        processes = [other._process for other in device._others]
        assert len(processes) == 3 and all(p.poll() is None for p in processes)
    assert [p.poll() for p in processes] == [0, 0, 0]


@pytest.mark.parametrize(
    ("targets", "code"),
    [
        (["cpu", "x86-64-v3:2"], "LLC0617"),
        (["cpu:1"], "LLC0603"),
        (["cpu:2:2"], "LLC0603"),
        (["h100:65"], "LLC0603"),
        (["cpu:3"], "LLC0616"),
    ],
)
def test_refused(divided: Callable[[str], Divided], tmp_path: Path, targets: list[str], code: str) -> None:
    """Before anything is written."""
    source = divided("f32").paths[1].parent / "source"
    with pytest.raises(LlamacError) as found:
        llamac.compile(source, target=targets, output=tmp_path / "m.llamac", quantize="f32", tokenizer=False)
    assert found.value.code == code and not list(tmp_path.iterdir())


def test_other_targets_later(divided: Callable[[str], Divided], tmp_path: Path) -> None:
    """Code for another CPU beside the weights of the ranks; not of another division."""
    case = divided("f32")
    retarget(case.paths[2], "x86-64-v3:2", output=tmp_path / "m.llamac")
    with case.load(2) as one, llamac.load(tmp_path / "m.llamac", threads=2, context=512, sequences=3) as other:
        assert relative_error(other.session.all_logits(IDS), one.session.all_logits(IDS)) < F32_BOUND
    with pytest.raises(LlamacError) as found:
        retarget(case.paths[2], "x86-64-v3", output=tmp_path / "n.llamac")
    assert found.value.code == "LLC0617" and not (tmp_path / "n.llamac").exists()
