"""`llamac retarget`: the bytes that `compile` gives for the same targets, without the checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from planned_models import Tiny

import llamac
from llamac.artifact.read import Artifact
from llamac.artifact.verify import verify_file
from llamac.artifact.write import ArtifactWriter
from llamac.cli.main import main
from llamac.errors import LlamacError
from llamac.models.capture.captured import CapturedModel
from llamac.models.graph import build_graph
from llamac.models.random_weights import random_checkpoint
from llamac.retarget import retarget

CPU, OTHER = "x86-64-v3", "x86-64-v4"


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A tiny model compiled for some targets, once."""
    folder, made = tmp_path_factory.mktemp("compiled"), {}

    def compile_tiny(*targets: str) -> Path:
        if targets not in made:
            made[targets] = folder / f"{'-'.join(targets)}.llamac"
            checkpoint = random_checkpoint(Tiny("bf16").config(), 3)
            llamac.compile(checkpoint, target=list(targets), output=made[targets], max_step_tokens=2, quantize="int4")
        return made[targets]

    return compile_tiny


@pytest.mark.parametrize(
    ("before", "targets", "after"),
    [
        ((CPU,), OTHER, (CPU, OTHER)),
        ((CPU, OTHER), CPU, (CPU, OTHER)),
        (("a100",), "sm_86", ("a100", "sm_86")),
        ((CPU, "a100"), "sm_86", (CPU, "a100", "sm_86")),
        ((CPU, "a100"), OTHER, (CPU, OTHER, "a100")),
    ],
    ids=lambda part: "-".join(part) if isinstance(part, tuple) else part,
)
def test_as_compiled(
    compiled: Callable[..., Path], tmp_path: Path, before: tuple[str, ...], targets: str, after: tuple[str, ...]
) -> None:
    """Code added or replaced beside weights that stay."""
    source, out = compiled(*before), tmp_path / "m.llamac"
    untouched = source.read_bytes()
    result = retarget(source, targets, output=out)
    assert out.read_bytes() == compiled(*after).read_bytes() and result.bytes == out.stat().st_size
    assert source.read_bytes() == untouched and [p.name for p in tmp_path.iterdir()] == ["m.llamac"]


@pytest.mark.parametrize(
    ("before", "gone", "after"),
    [
        ((CPU, OTHER), [CPU], (OTHER,)),
        (("a100", "sm_86"), ["a100"], ("sm_86",)),
        ((CPU, "a100"), [CPU], ("a100",)),
        ((CPU, "a100"), ["a100"], (CPU,)),
    ],
    ids=str,
)
def test_removed(
    compiled: Callable[..., Path], tmp_path: Path, before: tuple[str, ...], gone: list[str], after: tuple[str, ...]
) -> None:
    """A layout that nothing reads goes with its code."""
    retarget(compiled(*before), remove=gone, output=tmp_path / "m.llamac")
    assert (tmp_path / "m.llamac").read_bytes() == compiled(*after).read_bytes()


@pytest.mark.parametrize(("before", "target"), [((CPU,), "a100"), (("a100",), CPU)])
def test_another_layout(compiled: Callable[..., Path], tmp_path: Path, before: tuple[str, ...], target: str) -> None:
    """Every member as compiled from the checkpoint; the manifest differs in what the ledger says, and nothing else."""
    retarget(compiled(*before), target, output=tmp_path / "m.llamac")
    with Artifact.open(tmp_path / "m.llamac") as found, Artifact.open(compiled(CPU, "a100")) as expected:
        assert found.members == expected.members
        for name in set(found.members) - {"manifest.json", "manifest.sha256"}:
            assert found.member_bytes(name) == expected.member_bytes(name), name
        said = dict(found.manifest)
        entry = said["ledger"][-1]
        assert entry["kind"] == "repacked" and entry["where"].startswith("weights/")
        assert {**said, "ledger": said["ledger"][:-1]} == expected.manifest
    assert not verify_file(tmp_path / "m.llamac")


def test_what_was_packed_anew_and_taken_out_leaves_nothing(compiled: Callable[..., Path], tmp_path: Path) -> None:
    """Nor does the ledger speak of weights that are not there any more."""
    retarget(compiled(CPU), "a100", output=tmp_path / "m.llamac")
    retarget(tmp_path / "m.llamac", remove=["a100"])
    assert (tmp_path / "m.llamac").read_bytes() == compiled(CPU).read_bytes()


def test_another_layout_of_a_graph_that_no_configuration_gives(tmp_path: Path) -> None:
    """A captured module may scale its scores otherwise: code made of its configuration would compute something else."""
    checkpoint = random_checkpoint(Tiny("bf16").config(), 3)
    module = build_graph(checkpoint.config, checkpoint.tensors)
    constants = [op for op in module.step.ops if op.opcode == "constant" and op.location.endswith("attn")]
    scales = [op for op in constants if float(str(op.attributes["value"])) > 0.01]  # the others are those of norms
    assert len(scales) == checkpoint.config.layers
    for op in scales:
        op.attributes["value"] = 0.5 * float(str(op.attributes["value"]))
    path = tmp_path / "m.llamac"
    llamac.compile(CapturedModel(module, checkpoint), target=CPU, output=path, max_step_tokens=2, validate=False)
    with pytest.raises(LlamacError) as raised:
        retarget(path, "a100")
    assert raised.value.code == "LLC0615" and "not the one that its configuration gives" in raised.value.reason


def test_truth_of_code_that_stays(compiled: Callable[..., Path], tmp_path: Path) -> None:
    """What was verified stays so; code made now is compiled and no more."""
    path = with_manifest(compiled(CPU, OTHER), tmp_path, lambda m: m["targets"][0].update(truth="numerically verified"))
    retarget(path, "znver4")
    retarget(path, OTHER)
    with Artifact.open(path) as artifact:
        truths = {row["name"]: row["truth"] for row in artifact.manifest["targets"]}
    assert truths == {CPU: "numerically verified", OTHER: "compiled", "znver4": "compiled"}


def test_on_the_command_line(compiled: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "m.llamac")
    assert main(["retarget", str(compiled(CPU)), "--target", OTHER, "-o", out, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["targets"] == [CPU, OTHER]
    assert main(["retarget", out, "--remove", OTHER]) == 0
    assert Path(out).read_bytes() == compiled(CPU).read_bytes()


@pytest.mark.parametrize(
    ("targets", "gone", "code"),
    [
        ("sm_87", (), "LLC0603"),
        ((), (), "LLC0603"),
        ((), [OTHER], "LLC0613"),
        ((), [CPU], "LLC0613"),
        ("sm_80", (), "LLC0611"),
    ],
)
def test_refused(
    compiled: Callable[..., Path], tmp_path: Path, targets: Any, gone: Any, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One error each, and nothing is written."""
    source = compiled(CPU)
    if code == "LLC0611":
        source = tmp_path / "fp8.llamac"
        checkpoint = random_checkpoint(Tiny("bf16").config(), 3)
        llamac.compile(checkpoint, target=CPU, output=source, quantize="fp8", validate=False)
    with pytest.raises(LlamacError) as found:
        retarget(source, targets, remove=gone, output=tmp_path / "out" / "m.llamac")
    assert found.value.code == code and not (tmp_path / "out").exists()


def with_manifest(source: Path, folder: Path, edit: Callable[[dict[str, Any]], object]) -> Path:
    """A copy of an artifact with another manifest."""
    path = folder / "edited.llamac"
    with Artifact.open(source) as artifact, ArtifactWriter(path) as writer:
        manifest = json.loads(artifact.member_bytes("manifest.json"))
        edit(manifest)
        for name in artifact.members[:-2]:
            writer.copy_member(artifact, name)
        writer.finish({key: value for key, value in manifest.items() if key != "members"})
    return path


def shifted(manifest: dict[str, Any]) -> None:
    """Weights said to lie elsewhere than this llamac would place them."""
    manifest["weights"][0]["tensors"][0]["format"] = "i8g64s16"


def other_passes(manifest: dict[str, Any]) -> None:
    manifest["passes"][3]["name"] = "a-pass-of-mine"


@pytest.mark.parametrize(
    ("edit", "target", "code"),
    [
        (lambda m: m.pop("ir"), OTHER, "LLC0614"),
        (shifted, OTHER, "LLC0614"),
        (lambda m: m["model"].update(name="renamed"), OTHER, "LLC0614"),
        (lambda m: m["targets"][0].update(kind="null"), OTHER, "LLC0614"),
        (other_passes, "a100", "LLC0615"),
    ],
    ids=["without IR", "other places", "other code", "another kind", "other passes"],
)
def test_what_another_llamac_made(
    compiled: Callable[..., Path], tmp_path: Path, edit: Callable[[dict[str, Any]], object], target: str, code: str
) -> None:
    """A file that does not say all that is needed, or says something else, is refused and left as it was."""
    path = with_manifest(compiled(CPU), tmp_path, edit)
    before = path.read_bytes()
    with pytest.raises(LlamacError) as found:
        retarget(path, target)
    assert found.value.code == code and path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_damage_is_copied_and_found(compiled: Callable[..., Path], tmp_path: Path) -> None:
    """Weights are not hashed on the way; the hashes that came with them tell."""
    path = tmp_path / "m.llamac"
    path.write_bytes(compiled(CPU).read_bytes())
    with Artifact.open(path) as artifact:
        offset, nbytes = artifact.member_offset("weights/cpu-panel16.bin")
    with path.open("r+b") as file:
        file.seek(offset + nbytes // 2)
        file.write(b"\xff\x00\xff\x00")
    retarget(path, OTHER)
    assert [finding.code for finding in verify_file(path)] == ["LLC0712"]
