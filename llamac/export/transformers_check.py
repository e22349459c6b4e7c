"""Runs transformers, where it is installed, on an exported folder: every weight taken, and the same logits."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from contextlib import redirect_stderr
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llamac.models.sources import open_source

from .folder_check import refuse_unreadable
from .interpreted_logits import MOST_PARAMETERS, interpreted_logits, prompt_of, relative_largest
from .request import Check, ExportRequest

_SAME_LOGITS = 1e-4
"""Between torch's and numpy's sums in f32, over the largest logit."""
_CACHE_SCALES = ("k_scale", "v_scale")
"""Of a quantized cache, which a model loaded as floats does not have."""
_HALF_PRODUCTS = 2e-2
"""The same where compressed-tensors makes floats of integers in the type of the scales, f16."""


def transformers_checks(request: ExportRequest, place: Path, quantization: str = "") -> Iterator[Check]:
    """Loads the folder in f32; nothing but a note where a library is absent.

    quantization: the library that its quantized weights need. Where it quantizes activations they are loaded as the
    floats that they stand for; where not, it multiplies with them (as floats they would be in the type of the scales).
    """
    wanted = ["torch", "transformers", *([quantization.replace("-", "_")] if quantization else [])]
    missing = [name for name in wanted if importlib.util.find_spec(name) is None]
    if missing:
        request.note("note", "check", "transformers was not run", f"{missing[0]} is not installed")
        return
    if request.checkpoint.config.parameters > MOST_PARAMETERS:
        reason = f"it is run for models of at most {MOST_PARAMETERS // 10**6} million parameters"
        request.note("note", "check", "transformers was not run", reason)
        return
    name = f"transformers {version('transformers')}"
    loading, bound = {}, _SAME_LOGITS
    if quantization:
        name += f" with {quantization} {version(quantization)}"
        loading = {"quantization_config": compressed_settings(place)}
        packed = loading["quantization_config"].quantization_config.format == "pack-quantized"
        bound = _HALF_PRODUCTS if packed and loading["quantization_config"].dequantize else bound
    ids = prompt_of(request.checkpoint)
    with redirect_stderr(StringIO()):  # progress bars of either library
        model, missed, unexpected = load_folder(place, name, **loading)
        logits = text_logits(model, ids)
    odd = sorted(missed | {key for key in unexpected if not (quantization and key.endswith(_CACHE_SCALES))})
    said = f"{len(odd)} keys, {odd[0]} among them" if odd else "no missing and no unexpected keys"
    yield Check(name, not odd, said)
    apart = relative_largest(logits, interpreted_logits(open_source(place), ids))
    yield Check(f"{name} logits", apart <= bound, f"apart by {apart:.1e} of the largest", f"{bound:.0e}")


def load_folder(place: Path, library: str, **loading: Any) -> tuple[Any, set[str], set[str]]:
    """The model in f32 on the CPU, and the names of weights that it misses or does not know (LLC0954 if it fails)."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    try:
        config = AutoConfig.from_pretrained(place)
        kind = AutoModelForImageTextToText if hasattr(config, "vision_config") else AutoModelForCausalLM
        model, info = kind.from_pretrained(
            place, dtype=torch.float32, output_loading_info=True, attn_implementation="eager", **loading
        )
    except Exception as error:  # whatever a library says of a folder is this export's failure
        raise refuse_unreadable(error, library) from error
    return model.eval(), set(info["missing_keys"]), set(info["unexpected_keys"])


def compressed_settings(place: Path) -> Any:
    """The folder's own compressed-tensors settings; with the wish for floats where activations would be quantized.

    Also for zero points: version 0.20 packs them when it writes, and expects them unpacked in a model that it runs.
    """
    from transformers import CompressedTensorsConfig

    stored = json.loads((place / "config.json").read_text("utf-8"))["quantization_config"]
    groups = stored["config_groups"].values()
    floats = any(group["input_activations"] is not None or not group["weights"]["symmetric"] for group in groups)
    return CompressedTensorsConfig(**stored, dequantize=floats)


def text_logits(model: Any, ids: list[int]) -> NDArray[np.float32]:
    """Logits after every id of one text, [ids, vocabulary]."""
    import torch

    with torch.no_grad():
        found = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    return np.asarray(found.float().numpy(), np.float32)
