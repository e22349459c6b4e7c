"""Files with code for GPUs of models that take pictures: what is in them, and what retargeting leaves."""

from __future__ import annotations

from pathlib import Path

import pytest
from seeing_models import seeing

from llamac.artifact.launch_plan_file import read_plan
from llamac.artifact.read import Artifact
from llamac.artifact.verify import verify_file
from llamac.driver import compile, compile_graph
from llamac.errors import LlamacError
from llamac.gpu_side import gpu_side
from llamac.passes.pipelines import parse_quantization
from llamac.retarget import retarget
from llamac.target import find_target


@pytest.mark.slow
def test_both_encoders_in_one_file(tmp_path: Path) -> None:
    """The encoder of each side with its IR; without the CPU's the file is as one that never had it."""
    both, gpu, left = (tmp_path / f"{name}.llamac" for name in ("both", "gpu", "left"))
    options = {"kv": "f32", "max_step_tokens": 2}
    compile(seeing("mllama", "f32", small=True), target=["cpu", "mi300x"], output=both, **options)
    with Artifact.open(both) as artifact:
        manifest = artifact.manifest
        cpu, other = manifest["targets"]
        assert manifest["gpu"]["image"]["ir"] == "ir/encode_image.gpu.ir" and other["name"] == "mi300x"
        plan = read_plan(artifact.member_bytes(other["code"]), other["code"])
        assert plan.encoder is not None and plan.encoder.shapes == (0, 1, 2)
        verdicts = [v["after"] for v in manifest["certificate"]["image_verdicts"]]
        assert "lower-image-rows" in verdicts and "fuse-bias" in verdicts
    assert not verify_file(both)
    retarget(both, remove=[cpu["name"]], output=left)
    compile(seeing("mllama", "f32", small=True), target=["mi300x"], output=gpu, **options)
    with Artifact.open(left) as found, Artifact.open(gpu) as wanted:
        assert found.manifest["image"] == wanted.manifest["image"]
        names = [name for name in wanted.members if name.startswith(("gpu/", "ir/", "weights/"))]
        assert [n for n in found.members if n.startswith(("gpu/", "ir/", "weights/"))] == names
        assert all(found.member_bytes(n) == wanted.member_bytes(n) for n in names if not n.startswith("weights/"))
    with pytest.raises(LlamacError, match=r"LLC0615"):
        retarget(left, [cpu["name"]], output=both)


@pytest.mark.parametrize("name", ["llama4", "mllama"])
def test_both_codes_of_a_target_have_the_encoder(name: str) -> None:
    """Machine code and the fallback that later GPUs compile; scratch counts the encoder's."""
    graph = compile_graph(seeing(name, "bf16"), parse_quantization("keep"), None, 2, None, [], kind="gpu")
    side = gpu_side(graph, [find_target("h100")])
    for request in side.requests:
        assert request.encoder is not None and len(request.encoder.body) > 10
        scratch = next(b.bytes for b in request.buffers if b.role == "scratch")
        assert scratch >= request.encoder.arena_bytes
    assert side.arena_bytes >= max(r.encoder.arena_bytes for r in side.requests if r.encoder is not None)
