"""Torch files read without torch: what torch.save writes is found, what it does not write is refused, nothing runs."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llamac.errors import LlamacError
from llamac.models.torch_file import read_torch_file


def refusal(path: Path) -> LlamacError:
    with pytest.raises(LlamacError) as caught:
        read_torch_file(path)
    return caught.value


def stored_values(path: Path) -> dict[str, Any]:
    """What the file holds, by the places that the reader gives."""
    data, found = path.read_bytes(), {}
    for name, tensor in read_torch_file(path).tensors.items():
        dtype = {"bfloat16": "u2", "float8_e4m3fn": "u1"}.get(tensor.dtype, tensor.dtype)
        strides = tuple(stride * tensor.item for stride in tensor.strides)
        found[name] = np.ndarray(tensor.shape, dtype, data, tensor.offset, strides)
    return found


def test_every_kind_of_tensor(tmp_path: Path) -> None:
    base = torch.randn(6, 4)
    tensors = {
        "plain": base,
        "a view": base[1:4, 2:],
        "transposed": base.T,
        "parameter": torch.nn.Parameter(torch.randn(3)),
        "half": torch.randn(5).half(),
        "bf16": torch.randn(2, 3).bfloat16(),
        "fp8": torch.randn(8).to(torch.float8_e4m3fn),
        "words": torch.arange(7, dtype=torch.int32),
        "experts": torch.randn(2, 3, 4),
        "nothing": torch.empty(0),
    }
    path = tmp_path / "consolidated.00.pth"
    torch.save({**tensors, "_extra_state": io.BytesIO(b"state")}, path)
    assert read_torch_file(path).others == ("_extra_state",)
    for name, values in stored_values(path).items():
        expected = tensors[name].detach()
        raw = {"bf16": torch.uint16, "fp8": torch.uint8}.get(name)
        assert np.array_equal(values, (expected.view(raw) if raw else expected).numpy()), name
    assert len(stored_values(path)) == len(tensors)


def test_the_state_of_a_module_and_newer_protocols(tmp_path: Path) -> None:
    """state_dict is an OrderedDict with metadata; protocol 4 spells names and memo differently."""
    state = torch.nn.Linear(3, 2).state_dict()
    assert isinstance(state, OrderedDict)
    for protocol in (2, 3, 4, 5):
        torch.save(state, tmp_path / "m.pth", pickle_protocol=protocol)
        found = stored_values(tmp_path / "m.pth")
        assert list(found) == ["weight", "bias"] and np.array_equal(found["weight"], state["weight"].numpy())


def test_torch_is_not_imported(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "m.pth")
    code = (
        "import sys; from pathlib import Path; from llamac.models.torch_file import read_torch_file;"
        f"read_torch_file(Path({str(tmp_path / 'm.pth')!r})); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


class _Payload:
    """Unpickled, this would write a file."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> Any:
        return self.function, self.arguments


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("kind", ["os.system", "eval", "open", "hidden in a tensor", "build"])
def test_a_payload_is_refused_and_does_not_run(kind: str, protocol: int, tmp_path: Path) -> None:
    proof = tmp_path / "ran"
    payload: Any = {
        "os.system": _Payload(os.system, f"touch {proof}"),
        "eval": _Payload(eval, f"open({str(proof)!r}, 'w')"),
        "open": _Payload(open, str(proof), "w"),
        "hidden in a tensor": _Payload(torch._utils._rebuild_parameter, _Payload(os.system, f"touch {proof}")),
        "build": _Payload(OrderedDict, [("k", _Payload(os.system, f"touch {proof}"))]),
    }[kind]
    path = tmp_path / "consolidated.00.pth"
    torch.save({"w": torch.ones(2), "x": payload}, path, pickle_protocol=protocol)
    error = refusal(path)
    assert error.code == "LLC0221" and error.where == path.name and "nothing was run" in error.reason
    assert not proof.exists()


def test_a_payload_would_have_run(tmp_path: Path) -> None:
    """The test above proves something: torch.load without its safe mode runs such a file."""
    proof = tmp_path / "ran"
    torch.save({"x": _Payload(os.system, f"touch {proof}")}, tmp_path / "m.pth")
    torch.load(tmp_path / "m.pth", weights_only=False)
    assert proof.exists()


def test_other_containers(tmp_path: Path) -> None:
    path = tmp_path / "m.pth"
    torch.save({"w": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    assert (refusal(path).code, "before 1.6" in refusal(path).reason) == ("LLC0210", True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m/data.pkl", b"")
        archive.writestr("m/constants.pkl", b"")
    assert (refusal(path).code, "TorchScript" in refusal(path).reason) == ("LLC0210", True)
    torch.save([torch.ones(2)], path)
    assert refusal(path).code == "LLC0220" and "no dict" in refusal(path).reason
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    assert refusal(path).code == "LLC0202"
    path.write_bytes(b"")
    assert refusal(path).code == "LLC0220"
    assert refusal(tmp_path / "absent.pth").code == "LLC0201"


def _rewritten(path: Path, change: Any, compress: int = zipfile.ZIP_STORED) -> Path:
    """The archive with its members passed through `change(name, data)`; None drops one."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compress) as archive:
        for name, data in members.items():
            new = change(name, data)
            if new is not None:
                archive.writestr(name, new)
    return path


def test_damaged_archives(tmp_path: Path) -> None:
    path = tmp_path / "m.pth"

    def fresh() -> Path:
        torch.save({"w": torch.ones(64, 4), "v": torch.ones(8)}, path)
        return path

    data = fresh().read_bytes()
    for length in (10, 200, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        assert refusal(path).code == "LLC0203", length
    assert refusal(_rewritten(fresh(), lambda n, d: None if n.endswith("data/0") else d)).code == "LLC0220"
    assert refusal(_rewritten(fresh(), lambda n, d: d[:-4] if n.endswith("data/0") else d)).code == "LLC0220"
    assert refusal(_rewritten(fresh(), lambda n, d: None if n.endswith(".pkl") else d)).code == "LLC0220"
    assert refusal(_rewritten(fresh(), lambda n, d: d, zipfile.ZIP_DEFLATED)).code == "LLC0220"
    assert refusal(_rewritten(fresh(), lambda n, d: b"big" if n.endswith("byteorder") else d)).code == "LLC0210"
    # The shape [64, 4] grows to [65, 4]: beyond the storage.
    grown = _rewritten(fresh(), lambda n, d: d.replace(b"K@K\x04\x86", b"KAK\x04\x86") if n.endswith(".pkl") else d)
    assert refusal(grown).code == "LLC0220" and "beyond its 256 stored elements" in refusal(grown).reason


def test_random_damage_is_a_coded_error(tmp_path: Path) -> None:
    """Bytes of the description changed at random: the same tensors, or one coded error."""
    path, generator = tmp_path / "m.pth", np.random.default_rng(0)
    torch.save({"w": torch.ones(8, 4), "x": io.BytesIO(b"1")}, path)
    original = path.read_bytes()
    start = original.index(b"data.pkl") + 8
    for _ in range(400):
        damaged = bytearray(original)
        for place in generator.integers(start, start + 500, generator.integers(1, 4)):
            damaged[place] = generator.integers(256)
        path.write_bytes(damaged)
        try:
            stored_values(path)
        except LlamacError as error:
            assert error.code in ("LLC0203", "LLC0210", "LLC0220", "LLC0221")
