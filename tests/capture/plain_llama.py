"""A Llama as someone writes it by hand: own names, explicit past, rope and mask computed in forward."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from llamac.models.llama.config import LlamaConfig

CONFIG = LlamaConfig(
    name="plain",
    hidden_size=48,
    intermediate_size=80,
    layers=2,
    heads=6,
    kv_heads=2,
    head_dim=16,
    vocab_size=67,
    rms_norm_eps=1e-5,
    rope_theta=10000.0,
    rope_scaling=None,
    context_length=512,
    tied_head=False,
    dtype="f32",
    rope_style="half_split",
)


class Norm(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(size) + 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.float()
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-5)).type_as(x) * self.scale


def turn(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


class Mlp(nn.Module):
    def __init__(self, c: LlamaConfig, gate_first: bool) -> None:
        super().__init__()
        self.gate_first = gate_first
        self.w1, self.w3 = (nn.Linear(c.hidden_size, c.intermediate_size, bias=False) for _ in range(2))
        self.w2 = nn.Linear(c.intermediate_size, c.hidden_size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.gate_first:
            return self.w2(nn.functional.silu(self.w1(x)) * self.w3(x))
        up = self.w3(x)
        return self.w2(up * nn.functional.silu(self.w1(x)))


class Block(nn.Module):
    def __init__(self, c: LlamaConfig, gate_first: bool) -> None:
        super().__init__()
        self.c = c
        wide, narrow = c.heads * c.head_dim, c.kv_heads * c.head_dim
        self.norm1, self.norm2 = Norm(c.hidden_size), Norm(c.hidden_size)
        # In another order than they are applied, and of equal shapes where a name by shape would go wrong.
        self.wv, self.wk = nn.Linear(c.hidden_size, narrow, bias=False), nn.Linear(c.hidden_size, narrow, bias=False)
        self.wq, self.wo = nn.Linear(c.hidden_size, wide, bias=False), nn.Linear(wide, c.hidden_size, bias=False)
        self.mlp = Mlp(c, gate_first)

    def attend(self, x: torch.Tensor, tables: Any, mask: Any, k: torch.Tensor, v: torch.Tensor) -> Any:
        c, tokens = self.c, x.shape[0]
        new_v = self.wv(x).view(tokens, c.kv_heads, c.head_dim).transpose(0, 1)
        new_k = turn(self.wk(x).view(tokens, c.kv_heads, c.head_dim).transpose(0, 1), *tables)
        q = turn(self.wq(x).view(tokens, c.heads, c.head_dim).transpose(0, 1), *tables)
        k, v = torch.cat([k, new_k], dim=1), torch.cat([v, new_v], dim=1)
        wide_k, wide_v = (t.repeat_interleave(c.heads // c.kv_heads, dim=0) for t in (k, v))
        scores = (q @ wide_k.mT / math.sqrt(c.head_dim)).masked_fill(mask, float("-inf"))
        mixed = torch.softmax(scores.float(), dim=-1).type_as(q) @ wide_v
        return self.wo(mixed.transpose(0, 1).reshape(tokens, -1)), k, v

    def forward(self, x: torch.Tensor, tables: Any, mask: Any, k: torch.Tensor, v: torch.Tensor) -> Any:
        mixed, k, v = self.attend(self.norm1(x), tables, mask, k, v)
        x = x + mixed
        return x + self.mlp(self.norm2(x)), k, v


class PlainLlama(nn.Module):
    """forward(ids[T], positions[T], k.0[K, P, h], v.0, ...) -> logits, k.0, v.0, ..."""

    def __init__(self, c: LlamaConfig = CONFIG, gate_first: bool = True, seed: int = 3) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.c = c
        self.table = nn.Embedding(c.vocab_size, c.hidden_size)
        self.blocks = nn.ModuleList(Block(c, gate_first) for _ in range(c.layers))
        self.last = Norm(c.hidden_size)
        self.out = nn.Linear(c.hidden_size, c.vocab_size, bias=False)

    def tables(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        h = self.c.head_dim
        frequencies = 1.0 / (self.c.rope_theta ** (torch.arange(0, h, 2).float() / h))
        angles = (frequencies[:, None] @ positions[None, :].float()).transpose(0, 1)
        doubled = torch.cat([angles, angles], dim=-1)
        return doubled.cos(), doubled.sin()

    def forward(self, ids: torch.Tensor, positions: torch.Tensor, *past: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x, states = self.table(ids), []
        tables = self.tables(positions)
        keys = torch.arange(past[0].shape[1] + ids.shape[0])
        mask = keys[None, :] > positions[:, None]
        for layer, block in enumerate(self.blocks):
            x, k, v = block(x, tables, mask, *past[2 * layer : 2 * layer + 2])
            states += [k, v]
        return (self.out(self.last(x)), *states)


def make() -> tuple[nn.Module, LlamaConfig]:
    """The factory that `--from torch` calls in a test."""
    return PlainLlama(), CONFIG
