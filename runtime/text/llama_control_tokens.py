"""The control tokens of Llama 3 and Llama 4, in the order of their ids after the ranks.

As in Meta's llama3 and llama4 tokenizer.py. Written without their `<|` and `|>`.
"""

from __future__ import annotations

LLAMA3_RANKS, LLAMA4_RANKS = 128_000, 200_000


def _reserved(prefix: str, first: int, count: int) -> tuple[str, ...]:
    return tuple(f"{prefix}reserved_special_token_{number}" for number in range(first, first + count))


LLAMA3_CONTROL_TOKENS = (
    "begin_of_text",
    "end_of_text",
    *_reserved("", 0, 2),
    "finetune_right_pad_id",
    "step_id",
    "start_header_id",
    "end_header_id",
    "eom_id",
    "eot_id",
    "python_tag",
    "image",
    *_reserved("", 2, 244),
)

LLAMA4_CONTROL_TOKENS = (
    "begin_of_text",
    "end_of_text",
    "fim_prefix",
    "fim_middle",
    "fim_suffix",
    "header_start",
    "header_end",
    "eom",
    "eot",
    "step",
    *_reserved("text_post_train_", 0, 6),
    "python_start",
    "python_end",
    "finetune_right_pad",
    *_reserved("text_post_train_", 8, 61),
    "image_start",
    "image_end",
    *_reserved("vision_", 0, 2),
    "tile_x_separator",
    "tile_y_separator",
    *_reserved("vision_", 2, 4),
    "image",
    *_reserved("vision_", 6, 1),
    "patch",
    *_reserved("vision_", 7, 1041),
    *_reserved("reasoning_", 0, 8),
    "reasoning_thinking_start",
    "reasoning_thinking_end",
    *_reserved("", 0, 904),
)


def control_token_ids(ranks: int) -> dict[str, int]:
    """Text -> id of the control tokens that follow so many ranks; empty for a number that neither vocabulary has."""
    names = {LLAMA3_RANKS: LLAMA3_CONTROL_TOKENS, LLAMA4_RANKS: LLAMA4_CONTROL_TOKENS}.get(ranks, ())
    return {f"<|{name}|>": ranks + place for place, name in enumerate(names)}
