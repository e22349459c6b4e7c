"""Keys and values of single tokens in the pages of compiled code for a CPU: torch reads and writes them in place.

A page holds 256 positions, [layer][head][K, then V]; K in panels of 16 positions, [panel][head_dim][16], V
[256][head_dim] (docs/cpu-backend.md). Keys are rotated, the two of a pair half a head apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from llamac.models.llama.config import LlamaConfig
from llamac.runtime.device_cpu import CpuDevice
from llamac.runtime.kv import CachedSequence

PANEL = 16
DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Places:
    """Where tokens lie: page, and position in it, of each."""

    pages: torch.Tensor
    slots: torch.Tensor


class PageRows:
    """The memory of a CPU device's only cache, by tokens."""

    def __init__(self, device: CpuDevice, config: LlamaConfig) -> None:
        tokens, width = device.plan.kv_page_tokens, config.head_dim
        self.page_tokens = tokens
        self.dtype = DTYPES[device.plan.kv_dtype]
        memory = torch.from_numpy(device.cache_memory(0)).view(self.dtype)
        heads = memory.view(-1, config.layers, config.kv_heads, 2, tokens * width)
        self._keys = heads[..., 0, :].unflatten(-1, (tokens // PANEL, width, PANEL))
        self._values = heads[..., 1, :].unflatten(-1, (tokens, width))

    def places(self, sequence: CachedSequence, start: int, stop: int) -> Places:
        """Where the tokens of positions start..stop - 1 of a sequence lie."""
        positions = torch.arange(start, stop)
        return Places(torch.tensor(sequence.pages)[positions // self.page_tokens], positions % self.page_tokens)

    def read(self, at: Places) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values, [tokens, layers, heads, head_dim] each."""
        panels, lanes = at.slots // PANEL, at.slots % PANEL
        return self._keys[at.pages, :, :, panels, :, lanes], self._values[at.pages, :, :, at.slots]

    def write(self, at: Places, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Put keys and values, [tokens, layers, heads, head_dim] each, in their places."""
        panels, lanes = at.slots // PANEL, at.slots % PANEL
        self._keys[at.pages, :, :, panels, :, lanes] = keys.to(self.dtype)
        self._values[at.pages, :, :, at.slots] = values.to(self.dtype)


def joined(parts: Sequence[Places]) -> Places:
    """The places of several sequences, one after the other."""
    return Places(torch.cat([part.pages for part in parts]), torch.cat([part.slots for part in parts]))


class Turning:
    """Keys as pages hold them and as a module holds them: its own order of pairs, and positions counted from elsewhere.

    frequencies: [head_dim / 2]. interleaved: the module keeps the two of a pair next to each other.
    """

    def __init__(self, frequencies: torch.Tensor, interleaved: bool) -> None:
        self._frequencies = frequencies.double()
        self._interleaved = interleaved

    def from_module(self, keys: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        """Keys [tokens, layers, heads, head_dim] of tokens whose positions are `offsets` [tokens] too large."""
        ordered = torch.cat((keys[..., ::2], keys[..., 1::2]), -1) if self._interleaved else keys
        return self._turned(ordered, -offsets)

    def to_module(self, keys: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        """The way back."""
        turned = self._turned(keys, offsets)
        return torch.stack(turned.chunk(2, -1), -1).flatten(-2) if self._interleaved else turned

    def _turned(self, keys: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        if not offsets.any():
            return keys
        angles = offsets.double()[:, None, None, None] * self._frequencies
        cosines, sines = angles.cos().float(), angles.sin().float()
        first, second = keys.float().chunk(2, -1)
        turned = torch.cat((first * cosines - second * sines, second * cosines + first * sines), -1)
        return turned.to(keys.dtype)
