"""Tiny random models that take pictures, as transformers saves them: folders with weights, tokenizer and chat template.

And what transformers computes for the tiles that llamac cuts.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tiny_llama4 import Tiny4

from llamac.runtime.images.mllama_spans import encoder_input
from llamac.runtime.images.model_images import ModelImages
from llamac.runtime.images.placed import PicturePrompt

Floats = NDArray[np.float32]
SPECIAL4 = (
    "<|begin_of_text|>", "<|end_of_text|>", "<|header_start|>", "<|header_end|>", "<|eot|>", "<|image_start|>",
    "<|image_end|>", "<|image|>", "<|patch|>", "<|tile_x_separator|>", "<|tile_y_separator|>",
)  # fmt: skip
SPECIAL3 = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
FIRST_SPECIAL = 256
VOCABULARY = 288
IDS4 = {name: FIRST_SPECIAL + n for n, name in enumerate(SPECIAL4)}
MLLAMA_IMAGE = VOCABULARY
"""Beyond the vocabulary: the table of embeddings has 8 rows more than the head."""

TILE = 28
RATIOS = ((1, 1), (1, 2), (1, 3), (1, 4), (2, 1), (2, 2), (3, 1), (4, 1))


def tokenizer_json(special: dict[str, int]) -> bytes:
    """Ids 0..255 are the bytes, so text and ids can be read off one another; then control tokens."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    vocabulary = {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added = [{"id": number, "content": name, "special": True, **flags} for name, number in special.items()]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    model = {"type": "BPE", "vocab": vocabulary, "merges": [], "byte_fallback": False, "dropout": None}
    document = {"version": "1.0", "added_tokens": added, "pre_tokenizer": level, "decoder": level, "model": model}
    return json.dumps(document | {"normalizer": None, "post_processor": None}).encode()


def _template(header: tuple[str, str], end: str) -> str:
    return (
        "{{ bos_token }}{% for m in messages %}{{ '" + header[0] + "' + m['role'] + '" + header[1] + "' }}"
        "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for part in m['content'] %}"
        "{{ '<|image|>' if part['type'] == 'image' else part['text'] }}{% endfor %}{% endif %}"
        "{{ '" + end + "' }}{% endfor %}{{ '" + header[0] + "assistant" + header[1] + "' }}"
    )


def _finish(folder: Path, special: dict[str, int], template: str, eos: int) -> None:
    (folder / "tokenizer.json").write_bytes(tokenizer_json(special))
    settings = {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>", "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": eos, "bos_token_id": FIRST_SPECIAL}))


def enlarge(model: Any, seed: int) -> None:
    """Weights large enough to matter, gates open."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.numel() == 1:
                weight.fill_(0.5)
            elif weight.ndim >= 2 and "embedding" not in name and "embed_tokens" not in name:
                weight.normal_(0, 1.2 / weight.shape[-1] ** 0.5, generator=generator)
            else:
                weight.normal_(0, 0.3, generator=generator)
                weight += 1.0 if name.endswith("norm.weight") or "layernorm" in name else 0.0
    model.eval()


# Llama 4.

SHAPE4 = Tiny4(chunk=24, vocab=VOCABULARY, hidden=64, layers=4)


def make_llama4(folder: Path, shape: Tiny4 = SHAPE4) -> Any:
    """A Llama 4 of four layers with an encoder of two, saved to `folder`; returns transformers' model."""
    import torch
    import transformers

    vision = {
        "hidden_size": 32,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": TILE,
        "patch_size": 7,
        "pixel_shuffle_ratio": 0.5,
        "projector_input_dim": 48,
        "projector_output_dim": 48,
        "vision_output_dim": 48,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    }
    config = transformers.Llama4Config(
        vision_config=vision,
        text_config=shape.transformers_config(),
        image_token_index=IDS4["<|patch|>"],
        boi_token_index=IDS4["<|image_start|>"],
        eoi_token_index=IDS4["<|image_end|>"],
    )
    torch.manual_seed(0)
    model = transformers.Llama4ForConditionalGeneration._from_config(config, attn_implementation="eager").eval()
    enlarge(model, 4)
    model.save_pretrained(folder)
    _finish(folder, IDS4, _template(("<|header_start|>", "<|header_end|>"), "<|eot|>"), IDS4["<|eot|>"])
    return model


def llama4_logits(model: Any, prompt: PicturePrompt) -> Floats:
    """transformers' logits of every position of a prompt, its encoder fed with the prompt's tiles."""
    import torch

    with torch.no_grad():
        pixels = [torch.from_numpy(image.picture.tiles.pixels) for image in prompt.images]
        given = {"pixel_values": torch.cat(pixels)} if pixels else {}
        found = model(input_ids=torch.tensor([prompt.ids]), use_cache=False, **given)
    return np.asarray(found.logits[0].float().numpy())


# Llama 3.2 Vision.


def make_mllama(folder: Path) -> Any:
    """A Llama 3.2 Vision of six layers, two of which see pictures, saved to `folder`; returns transformers' model.

    transformers 5.23 takes a tap behind its block, the checkpoints mean the block's input: the saved config says so.
    """
    import torch
    import transformers

    vision = transformers.MllamaVisionConfig(
        hidden_size=32,
        intermediate_size=128,
        num_hidden_layers=4,
        num_global_layers=2,
        attention_heads=4,
        image_size=TILE,
        patch_size=14,
        max_num_tiles=4,
        intermediate_layers_indices=[0, 2],
        vision_output_dim=96,
        supported_aspect_ratios=[list(ratio) for ratio in RATIOS],
    )
    text = transformers.MllamaTextConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        cross_attention_layers=[1, 4],
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 5e5,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        pad_token_id=0,
        bos_token_id=FIRST_SPECIAL,
        eos_token_id=FIRST_SPECIAL + 1,
    )
    config = transformers.MllamaConfig(
        vision_config=vision.to_dict(), text_config=text.to_dict(), image_token_index=MLLAMA_IMAGE
    )
    torch.manual_seed(0)
    model = transformers.MllamaForConditionalGeneration._from_config(config, attn_implementation="eager")
    enlarge(model, 5)
    model.save_pretrained(folder)
    saved = json.loads((folder / "config.json").read_text())
    saved["vision_config"]["intermediate_layers_indices"] = [1, 3]
    (folder / "config.json").write_text(json.dumps(saved))
    special = {name: FIRST_SPECIAL + n for n, name in enumerate(SPECIAL3)} | {"<|image|>": MLLAMA_IMAGE}
    _finish(folder, special, _template(("<|start_header_id|>", "<|end_header_id|>"), "<|eot_id|>"), FIRST_SPECIAL + 4)
    return model


@dataclass
class MendedAttention:
    """transformers' cross-attention with nothing in the rows that see nothing.

    Version 5.23 masks the MLP of those rows and forgets the attention (issue 39379).
    """

    attention: Any
    rows: Any = 1.0

    def install(self) -> None:
        original = self.attention.forward

        def forward(hidden_states: Any, *, attention_mask: Any = None, **others: Any) -> Any:
            output, weights = original(hidden_states, attention_mask=attention_mask, **others)
            return output * self.rows, weights

        self.attention.forward = forward


def mllama_logits(model: Any, prompt: PicturePrompt) -> Floats:
    """transformers' logits of every position of a prompt, its encoder fed with the prompt's tiles."""
    import torch

    if not prompt.images:
        with torch.no_grad():
            return np.asarray(model(input_ids=torch.tensor([prompt.ids])).logits[0].float().numpy())
    seen = seen_pictures(prompt)
    pixels = np.stack([encoder_input(image.picture.tiles, 4) for image in prompt.images])
    tiles = np.array([image.picture.tiles.tiles for image in prompt.images])
    real = np.arange(4) < tiles[:, None]
    layers = [layer for layer in model.model.language_model.layers if hasattr(layer, "cross_attn")]
    mends = [MendedAttention(layer.cross_attn) for layer in layers]
    for mend in mends:
        mend.rows = torch.from_numpy(seen.any(axis=1).astype(np.float32))[None, :, None]
        mend.install()
    try:
        with torch.no_grad():
            found = model(
                input_ids=torch.tensor([prompt.ids]),
                pixel_values=torch.from_numpy(pixels)[None],
                aspect_ratio_ids=torch.tensor([[image.aspect_ratio for image in prompt.images]]),
                aspect_ratio_mask=torch.from_numpy(real.astype(np.int64))[None],
                cross_attention_mask=torch.from_numpy((seen[:, :, None] & real[None]).astype(np.int64))[None],
                use_cache=False,
            )
    finally:
        for mend in mends:
            del mend.attention.forward
    return np.asarray(found.logits[0].float().numpy())


def seen_pictures(prompt: PicturePrompt) -> NDArray[np.bool_]:
    """Which pictures each position sees: the last at or before it, with those that stand directly before that one."""
    seen = np.zeros((len(prompt.ids), len(prompt.images)), bool)
    for t in range(len(prompt.ids)):
        last = sum(image.start <= t for image in prompt.images)
        while last:
            seen[t, last - 1] = True
            before = prompt.images[last - 2].start if last > 1 else -2
            last = last - 1 if before == prompt.images[last - 1].start - 1 else 0
    return seen


# Pictures.


def picture(width: int, height: int, seed: int) -> Any:
    """A random PIL image, smooth enough that resizing keeps something of it."""
    from PIL import Image

    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (5, 5, 3), np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def prompt_of(images: ModelImages, text: Sequence[int], pictures: Sequence[Any]) -> PicturePrompt:
    """Ids and pictures as the model takes them."""
    from llamac.runtime.images.model_images import load_all

    return images.place(list(text), load_all(pictures, images.settings))
