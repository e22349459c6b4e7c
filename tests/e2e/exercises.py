"""What a model is put through, in the shipped code and in builds that watch it: every way of stepping, ids only."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from stepping import in_chunks, side_by_side

from llamac.runtime.model import Model

Arrays = dict[str, NDArray[np.generic]]


def exercise(model: Model, pictures: bool = False) -> Arrays:
    """Name -> logits or ids: a prompt whole, in chunks over a page's end, one by one, side by side; greedy, drawn."""
    ids = [int(i) for i in np.random.default_rng(0).integers(0, model.vocab_size, 270)]
    step = model.session.max_step_tokens
    found: Arrays = {
        "whole": in_chunks(model, ids[:step], (step,)),
        "chunks": in_chunks(model, ids, (step, 1, 7, step - 3)),
        "one by one": in_chunks(model, ids[:9], (1,)),
    }
    sides = side_by_side(model, [ids[:11], ids[5:20], ids[40:43]], [[3, 4], [9], []])
    found |= {f"side {number}": rows for number, rows in enumerate(sides)}
    greedy = model.generate(ids[:13], max_new_tokens=6, temperature=0, ignore_stop_ids=True)
    drawn = model.generate(ids[:13], max_new_tokens=6, temperature=0.9, top_k=5, seed=3, ignore_stop_ids=True)
    found |= {"greedy": np.array(greedy.token_ids), "drawn": np.array(drawn.token_ids)}
    if pictures:
        found |= _with_pictures(model)
    return found


def _with_pictures(model: Model) -> Arrays:
    from PIL import Image

    pixels = np.random.default_rng(1).integers(0, 255, (50, 60, 3), np.uint8)
    wide = np.random.default_rng(2).integers(0, 255, (20, 100, 3), np.uint8)
    shown = [Image.fromarray(pixels), Image.fromarray(wide)]
    texts = {"one picture": ("Look: <|image|>what?", shown[:1]), "two": ("<|image|>One, <|image|>two.", shown)}
    return {
        name: np.array(model.generate(text, images=images, max_new_tokens=4, temperature=0).token_ids)
        for name, (text, images) in texts.items()
    }
