"""A Llama as someone writes it by hand, without a cache: forward(ids) -> logits, in several spellings."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

VOCABULARY, HIDDEN, INNER, HEADS, SHARED, WIDTH, LAYERS, LONGEST = 67, 48, 80, 6, 2, 16, 2, 256


@dataclass(frozen=True)
class Spelling:
    """mask: how the future is hidden. turn: halves, or pairs by "strides" or "complex" numbers.

    tables: where cosines and sines come from. ids: "rows" [B, T] or "one" [T]. odd: what makes it no Llama.
    """

    mask: str = "sdpa"
    turn: str = "halves"
    tables: str = "computed"
    ids: str = "rows"
    last: bool = False
    odd: str = ""


def frequencies() -> torch.Tensor:
    return 1.0 / (10000.0 ** (torch.arange(0, WIDTH, 2).float() / WIDTH))


class Norm(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(size) + 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * self.scale


def turn(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def turn_strides(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    cos, sin, even, odd = cos[..., : WIDTH // 2], sin[..., : WIDTH // 2], x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


def turn_complex(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    numbers = torch.complex(cos[..., : WIDTH // 2], sin[..., : WIDTH // 2])
    turned = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2)) * numbers
    return torch.view_as_real(turned).flatten(-2).type_as(x)


class Attention(nn.Module):
    def __init__(self, spelling: Spelling) -> None:
        super().__init__()
        self.spelling = spelling
        self.wv, self.wk = (nn.Linear(HIDDEN, SHARED * WIDTH, bias=False) for _ in range(2))
        self.wq, self.wo = nn.Linear(HIDDEN, HEADS * WIDTH, bias=False), nn.Linear(HEADS * WIDTH, HIDDEN, bias=False)
        if spelling.mask == "buffer":
            self.register_buffer("hidden", torch.triu(torch.ones(LONGEST, LONGEST, dtype=torch.bool), 1))

    def heads(self, x: torch.Tensor, count: int) -> torch.Tensor:
        return x.view(*x.shape[:-1], count, WIDTH).transpose(-2, -3)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        turns = {"halves": turn, "strides": turn_strides, "complex": turn_complex}[self.spelling.turn]
        q, k = (turns(self.heads(w(x), n), cos, sin) for w, n in ((self.wq, HEADS), (self.wk, SHARED)))
        v = self.heads(self.wv(x), SHARED)
        k, v = (t.repeat_interleave(HEADS // SHARED, dim=-3) for t in (k, v))
        if self.spelling.mask == "sdpa":
            mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        elif self.spelling.mask == "none":
            mixed = functional.scaled_dot_product_attention(q, k, v)
        else:
            mixed = torch.softmax(q @ k.mT / WIDTH**0.5 + self.mask(x.shape[-2]), dim=-1) @ v
        return self.wo(mixed.transpose(-2, -3).flatten(-2))

    def mask(self, length: int) -> torch.Tensor:
        places = torch.arange(length)
        if self.spelling.mask == "window":
            far = (places[:, None] - places[None, :]) > 100
            return torch.where(far | (places[None, :] > places[:, None]), float("-inf"), 0.0)
        if self.spelling.mask == "buffer":
            return torch.zeros(length, length).masked_fill(self.hidden[:length, :length], float("-inf"))
        return torch.full((length, length), float("-inf")).triu(1)


class Block(nn.Module):
    def __init__(self, spelling: Spelling) -> None:
        super().__init__()
        self.spelling = spelling
        self.attention, self.norm1, self.norm2 = Attention(spelling), Norm(HIDDEN), Norm(HIDDEN)
        self.w1, self.w3 = (nn.Linear(HIDDEN, INNER, bias=False) for _ in range(2))
        self.w2 = nn.Linear(INNER, HIDDEN, bias=False)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm1(x), cos, sin)
        inner = self.norm2(x)
        if self.spelling.odd == "gelu":
            return x + self.w2(functional.gelu(self.w1(inner)) * self.w3(inner))
        if self.spelling.odd == "cumsum":
            inner = inner + inner.cumsum(-1)
        x = x + self.w2(functional.silu(self.w1(inner)) * self.w3(inner))
        return x * 1.5 if self.spelling.odd == "scaled" else x


class PlainForward(nn.Module):
    def __init__(self, spelling: Spelling | None = None, seed: int = 3) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.spelling = spelling or Spelling()
        self.table = nn.Embedding(VOCABULARY, HIDDEN)
        self.blocks = nn.ModuleList(Block(self.spelling) for _ in range(LAYERS))
        self.last = Norm(HIDDEN)
        self.out = nn.Linear(HIDDEN, VOCABULARY, bias=False)
        angles = torch.arange(LONGEST)[:, None] * frequencies()[None, :]
        self.register_buffer("cos", torch.cat([angles, angles], -1).cos())
        self.register_buffer("sin", torch.cat([angles, angles], -1).sin())

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        length = ids.shape[-1]
        if self.spelling.tables == "buffers":
            cos, sin = self.cos[:length], self.sin[:length]
        else:
            angles = torch.outer(torch.arange(length).float(), frequencies()).repeat(1, 2)
            cos, sin = angles.cos(), angles.sin()
        x = self.table(ids)
        if self.spelling.odd == "positions":
            x = x + self.cos[:length].repeat(1, HIDDEN // WIDTH)
        for block in self.blocks:
            x = block(x, cos, sin)
            if self.spelling.odd == "break":
                torch._dynamo.graph_break()
        if self.spelling.last:
            x = x[..., -1:, :]
        return self.out(self.last(x))
