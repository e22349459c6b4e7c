"""What a model with pictures says to a few prompts: for comparing one device with another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from tiny_pictures import picture

from llamac.runtime.model import Model
from llamac.runtime.session import Feed

Prompt = tuple[str, list[tuple[int, int]]]
"""A text with a placeholder for each picture, and the sizes of the pictures."""


def generated(model: Model, prompts: Sequence[Prompt], new_tokens: int = 3) -> dict[str, Any]:
    """Logits behind each prompt, of a step of them all together, and greedy texts."""
    encoded = [
        model.encode_with_images(text, [picture(*size, seed) for seed, size in enumerate(sizes)])
        for text, sizes in prompts
    ]
    session = model.session
    sequences = [session.open() for _ in encoded]
    found: dict[str, Any] = {}
    feeds = []
    for number, (sequence, prompt) in enumerate(zip(sequences, encoded, strict=True)):
        session.place(sequence, prompt.images)
        found[f"prompt{number}"] = session.prefill(sequence, prompt.ids[:-1])
        feeds.append(Feed(sequence, prompt.ids[-1:]))
    found["batch"] = session.step(feeds)
    for sequence in sequences:
        sequence.close()
    texts = [
        model.generate(text, images=[picture(*size, seed) for seed, size in enumerate(sizes)],
                       max_new_tokens=new_tokens, temperature=0.0, ignore_stop_ids=True).token_ids
        for text, sizes in prompts
    ]  # fmt: skip
    return found | {"texts": np.array(texts)}
