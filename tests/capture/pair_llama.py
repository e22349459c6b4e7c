"""The plain Llama with the rotation of pairs, as Meta's reference has it, in four spellings."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import plain_llama
import torch
from torch import nn

CONFIG = replace(plain_llama.CONFIG, rope_style="interleaved")

SPELLINGS = ("strides", "complex", "complex-buffer", "meta")
"""x[..., 0::2] and x[..., 1::2]; complex numbers; with frequencies in a buffer; turned before the heads move."""


def by_strides(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    even, odd = x[..., 0::2], x[..., 1::2]
    cos, sin = angles.cos(), angles.sin()
    return torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1).flatten(-2)


def by_numbers(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    turned = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2)) * torch.polar(
        torch.ones_like(angles), angles
    )
    return torch.view_as_real(turned).flatten(-2).type_as(x)


class PairBlock(plain_llama.Block):
    def __init__(self, spelling: str) -> None:
        super().__init__(CONFIG, True)
        self.spelling = spelling

    def turned(self, x: torch.Tensor, count: int, angles: torch.Tensor) -> torch.Tensor:
        """q or k, [heads, T, h]."""
        split = x.view(x.shape[0], count, CONFIG.head_dim)
        if self.spelling == "meta":
            return by_numbers(split, angles[:, None, :]).transpose(0, 1)
        turn = by_strides if self.spelling == "strides" else by_numbers
        return turn(split.transpose(0, 1), angles)

    def attend(self, x: torch.Tensor, angles: Any, mask: Any, k: torch.Tensor, v: torch.Tensor) -> Any:
        c = self.c
        new_v = self.wv(x).view(x.shape[0], c.kv_heads, c.head_dim).transpose(0, 1)
        new_k, q = self.turned(self.wk(x), c.kv_heads, angles), self.turned(self.wq(x), c.heads, angles)
        k, v = torch.cat([k, new_k], dim=1), torch.cat([v, new_v], dim=1)
        wide_k, wide_v = (t.repeat_interleave(c.heads // c.kv_heads, dim=0) for t in (k, v))
        scores = (q @ wide_k.mT / math.sqrt(c.head_dim)).masked_fill(mask, float("-inf"))
        mixed = torch.softmax(scores, dim=-1) @ wide_v
        return self.wo(mixed.transpose(0, 1).reshape(x.shape[0], -1)), k, v


class PairLlama(plain_llama.PlainLlama):
    def __init__(self, spelling: str) -> None:
        super().__init__(CONFIG)
        self.blocks = nn.ModuleList(PairBlock(spelling) for _ in range(CONFIG.layers))
        half = torch.arange(0, CONFIG.head_dim, 2).float() / CONFIG.head_dim
        self.buffered = spelling == "complex-buffer"
        self.register_buffer("frequencies", 1.0 / (CONFIG.rope_theta**half))

    def tables(self, positions: torch.Tensor) -> Any:
        """The angles: every spelling makes of them what it needs."""
        half = torch.arange(0, CONFIG.head_dim, 2).float() / CONFIG.head_dim
        frequencies = self.frequencies if self.buffered else 1.0 / (CONFIG.rope_theta**half)
        return torch.outer(positions.float(), frequencies)
