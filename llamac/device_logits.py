"""The logits that a device of an artifact gives, as a recording: what `llamac diverge` compares end to end.

Other systems hand out no values between token ids and logits: each token's logits are one activation.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llamac.artifact.read import Artifact
from llamac.errors import LlamacError, did_you_mean
from llamac.runtime.loader import load

from .recording import Activation, Floats, Recording

WHERE, WHAT = "logits", "of every token, end to end"


def record_device(artifact: Artifact, device: str, ids: Sequence[int]) -> Recording:
    """Run `ids` on a device of the artifact, in one step. **This runs the artifact's code.**

    LLC0101 when the file has no code for the device; what the device raises besides.
    """
    names = [row["name"] for row in artifact.manifest["targets"]]
    if device not in names:
        reason = f"the file has no code for it{did_you_mean(device, names)}"
        raise LlamacError("LLC0101", device, reason, f"it has {', '.join(names)}")
    with load(artifact.path, target=device, device=_kind(artifact, device), check="none") as model:
        logits = np.asarray(model.logits(list(ids)), np.float32)
    return recording(f"{device} of {artifact.path}", logits, rounds(artifact))


def _kind(artifact: Artifact, device: str) -> str:
    """The device of the runtime that runs a target."""
    kind = next(row["kind"] for row in artifact.manifest["targets"] if row["name"] == device)
    return {"tvm-source": "tvm"}.get(kind, str(kind))


def recording(name: str, logits: Floats, is_rounded: bool) -> Recording:
    """Logits alone, as a recording."""
    return Recording(name, [Activation(WHERE, WHAT, logits, ())], logits, {}, lambda _: None, "", is_rounded)


def rounds(artifact: Artifact) -> bool:
    """Whether a device may round activations, to integers or to bf16."""
    formats = {row["format"] for member in artifact.manifest["weights"] for row in member["tensors"]}
    return any(name[:2] in ("i4", "u4", "i8", "u8") or name.endswith("x2") for name in formats)
