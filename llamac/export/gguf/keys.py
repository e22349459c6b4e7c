"""Metadata of a GGUF file as plain values, and how each is stored."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gguf import GGUFWriter

Keys = dict[str, object]
"""Key -> text, truth value, whole number, float, or a list of one of these."""


def add_keys(writer: GGUFWriter, keys: Keys) -> None:
    """Numbers become u32 (i32 where negative, u64 where larger) and f32, those in lists i32 and f32."""
    for key, value in keys.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, int):
            add = writer.add_int32 if value < 0 else writer.add_uint32 if value < 1 << 32 else writer.add_uint64
            add(key, value)
        else:
            raise TypeError(f"{key} is a {type(value).__name__}")
