"""Meta's own code of Llama 3.2 Vision, small, on one process of a CPU: its sizes are constants there."""

from __future__ import annotations

import importlib
import sys
import types
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny_meta import stub_fairscale

from llamac.models.llama.vision_config import MllamaVision
from llamac.runtime.images.mllama_spans import encoder_input
from llamac.runtime.images.placed import PicturePrompt

Floats = NDArray[np.float32]


def meta_model(params: dict[str, Any], vision: MllamaVision, positions: int = 128) -> Any:
    """CrossAttentionTransformer of `params`, with the encoder's constants replaced by those of `vision`."""
    stub_fairscale()
    import torch
    from llama_models.llama3.args import ModelArgs

    code = _code()

    def encoder(**given: Any) -> Any:
        own = {"width": vision.hidden_size, "layers": vision.layers, "heads": vision.heads}
        own |= {"n_global_layers": vision.global_layers, "return_intermediate": list(vision.taps)}
        own |= {"mlp_ratio": vision.intermediate_size / vision.hidden_size}
        return original(**(given | own))

    original = code.VisionEncoder
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(code, "VisionEncoder", encoder)
        patch.setattr(code, "VariableSizeImageTransform", _uncut)
        arguments = ModelArgs(**params, max_batch_size=1, max_seq_len=positions)
        model = code.CrossAttentionTransformer(arguments)
    # One process has nothing to gather from others.
    code.gather_from_tensor_model_parallel_region = lambda x: x
    code.reduce_from_tensor_model_parallel_region = lambda x: x
    model.vision_model.vision_projection = torch.nn.Linear(vision.output_size, params["dim"])
    model.setup_cache(1, torch.device("cpu"), torch.float32)
    return model.eval()


def _uncut(size: int) -> Any:
    """Meta's way of cutting pictures needs torchvision, and is not what is looked at here."""
    return lambda picture, **_: picture


def _code() -> Any:
    """The module of the model, imported without the one that cuts pictures; others find that one as it is."""
    cutting = types.ModuleType("llama_models.llama3.multimodal.image_transform")
    cutting.VariableSizeImageTransform = _uncut  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        if cutting.__name__ not in sys.modules:
            patch.setitem(sys.modules, cutting.__name__, cutting)
        return importlib.import_module("llama_models.llama3.multimodal.model")


def meta_picture_logits(model: Any, prompt: PicturePrompt, vision: MllamaVision) -> Floats:
    """Meta's logits of every position of a prompt with one picture, its encoder fed with the prompt's tiles."""
    import torch
    from llama_models.llama3.multimodal.model import _pad_masks

    (image,) = prompt.images
    tiles = image.picture.tiles
    pixels = torch.from_numpy(encoder_input(tiles, vision.max_tiles))[None, None]
    shape = torch.tensor([[vision.supported_aspect_ratios[image.aspect_ratio - 1]]])
    text, count = model.text_model, len(prompt.ids)
    with torch.no_grad():
        seen = model.vision_model(pixels, shape)
        tokens = seen.view(1, -1, seen.shape[-1])
        caches = [layer.compute_xattn_kv_cache(tokens) for layer in text.cross_attention_layers]
        masks = _pad_masks([[[image.start, -1]]], [[tiles.tiles]], count, vision.max_tiles)
        mask, rows = text._get_xattn_mask(count, "cpu", torch.float32, seen, masks)
        logits = model(torch.arange(count), torch.tensor([prompt.ids]), mask, rows, torch.stack(caches))
    return np.asarray(logits[0].numpy())
