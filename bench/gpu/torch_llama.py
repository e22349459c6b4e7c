"""A dense Llama in plain torch: the reference of `make gpu-test` in fp32, and the peer of `make gpu-bench` in bf16."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional


class TorchLlama(torch.nn.Module):
    """The model of a case's weights; keys and values of `context` tokens of `batch` sequences lie in fixed memory.

    weights: an object whose `values(name)` gives f32 arrays by the names of the case.
    """

    def __init__(
        self, about: dict[str, Any], weights: Any, dtype: torch.dtype, batch: int, context: int, device: str = "cuda"
    ) -> None:
        super().__init__()
        self.c = c = about["config"]
        names = [row["name"] for row in about["weights"]]

        def parameter(name: str, kind: torch.dtype = dtype) -> torch.Tensor:
            """What the weight of this model-level name became: its name, perhaps with what was done to it."""
            (found,) = (full for full in names if full == name or full.startswith(f"{name}."))
            return torch.from_numpy(np.array(weights.values(found))).to(device, kind)

        self.embed = parameter("embed")
        self.head = parameter("head") if any(name.startswith("head") for name in names) else self.embed
        self.norm = parameter("norm")
        self.frequencies = parameter("rope.inverse_frequencies", torch.float32)
        self.layers = [
            {
                name.rpartition(".")[2]: parameter(f"layers.{n}.{name}")
                for name in ("attn_norm", "attn.qkv", "attn.o", "mlp_norm", "mlp.gate_up", "mlp.down")
            }
            for n in range(c["layers"])
        ]  # fmt: skip
        shape = (c["layers"], 2, batch, c["kv_heads"], context, c["head_dim"])
        self.cache = torch.zeros(shape, dtype=dtype, device=device)

    def forward(self, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Logits [batch, tokens, vocab] of ids [batch, tokens] at `positions` [tokens], after what the cache holds."""
        c = self.c
        x = self.embed[ids]
        angles = torch.outer(positions.float(), self.frequencies)
        cos, sin = (torch.cat([f(angles)] * 2, -1).to(x.dtype) for f in (torch.cos, torch.sin))
        places = torch.arange(self.cache.shape[4], device=x.device)
        mask = places[None] <= positions[:, None]
        for n, layer in enumerate(self.layers):
            x = x + self._attention(n, layer, self._norm(x, layer["attn_norm"]), cos, sin, positions, mask)
            gate, up = functional.linear(self._norm(x, layer["mlp_norm"]), layer["gate_up"]).chunk(2, -1)
            x = x + functional.linear(functional.silu(gate) * up, layer["down"])
        return functional.linear(functional.rms_norm(x, (c["hidden_size"],), self.norm, c["rms_norm_eps"]), self.head)

    def _norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return functional.rms_norm(x, (self.c["hidden_size"],), weight, self.c["rms_norm_eps"])

    def _attention(
        self, n: int, layer: dict[str, torch.Tensor], x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor,
        positions: torch.Tensor, mask: torch.Tensor,
    ) -> torch.Tensor:  # fmt: skip
        c = self.c
        heads = functional.linear(x, layer["qkv"]).unflatten(-1, (-1, c["head_dim"])).transpose(1, 2)
        q, k, v = heads.split([c["heads"], c["kv_heads"], c["kv_heads"]], 1)
        q, k = (_rotated(part, cos, sin) for part in (q, k))
        keys, values = self.cache[n, 0], self.cache[n, 1]
        keys.index_copy_(2, positions, k)
        values.index_copy_(2, positions, v)
        seen = functional.scaled_dot_product_attention(q, keys, values, attn_mask=mask, enable_gqa=True)
        return functional.linear(seen.transpose(1, 2).flatten(2), layer["o"])


def _rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """The halves of each head rotated against one another."""
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin


def replayed(model: TorchLlama, batch: int, context: int) -> torch.cuda.CUDAGraph:
    """A compiled decode step behind `context` tokens, with the best token of each sequence, as a CUDA graph."""
    ids = torch.ones(batch, 1, dtype=torch.long, device="cuda")
    positions = torch.tensor([context], device="cuda")

    @torch.compile(mode="max-autotune-no-cudagraphs", fullgraph=True)
    def step(ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return model(ids, positions)[:, -1].argmax(-1)

    with torch.no_grad():
        for _ in range(3):
            step(ids, positions)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step(ids, positions)
    return graph
