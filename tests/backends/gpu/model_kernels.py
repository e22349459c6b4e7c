"""The kernels of real models, as requests: what the tests of compiled code compile."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from llamac.backends.gpu import attention_requests, expert_requests, linear_requests, sample_calls, step_requests
from llamac.backends.gpu.architectures import Architecture, architecture
from llamac.backends.gpu.attention_requests import Heads
from llamac.backends.gpu.cost_model import NARROW
from llamac.backends.gpu.expert_requests import Experts
from llamac.backends.gpu.request import KernelRequest
from llamac.ir.dtypes import BF16
from llamac.ir.layouts import format_of
from llamac.ir.row_layouts import RowLayout
from llamac.ir.types import CacheType

EPS = 1e-5


@dataclass(frozen=True)
class Model:
    """The sizes of a dense Llama."""

    hidden: int
    inner: int
    heads: int
    kv_heads: int
    head: int
    layers: int
    vocab: int


MODELS = {
    "1b": Model(2048, 8192, 32, 8, 64, 16, 128256),
    "8b": Model(4096, 14336, 32, 8, 128, 32, 128256),
    "70b": Model(8192, 28672, 64, 8, 128, 80, 128256),
    "smollm2-135m": Model(576, 1536, 9, 3, 64, 30, 49152),
}
SCOUT = Model(5120, 8192, 40, 8, 128, 48, 202048)


def attention_of(model: Model, cache: str = "bf16", chunk: int = 0) -> Heads:
    """The heads of a model with pages of 256 tokens."""
    kind = CacheType(model.layers, model.kv_heads, model.head, 256, BF16, chunk)
    return Heads(model.heads, kind, cache, model.head**-0.5, scaled=cache in ("fp8e4nv", "u8"))


def decode_kernels(
    machine: Architecture, model: Model, format: str, tokens: int, cache: str = "bf16"
) -> Iterator[KernelRequest]:
    """A dense layer and the head, for a few tokens: four kernels a layer beside attention."""

    def layout(rows: int, columns: int) -> RowLayout:
        return RowLayout(format_of(format), rows, columns)

    heads = attention_of(model, cache)
    joined = (model.heads + 2 * model.kv_heads) * model.head
    kind = linear_requests.between(layout(1, 64))
    yield attention_requests.decode_qkv(machine, layout(joined, model.hidden), heads, tokens, EPS)
    yield linear_requests.decode_linear(
        machine, layout(model.hidden, model.heads * model.head), tokens, x=kind, residual=True
    )
    yield linear_requests.decode_gate_up(machine, layout(2 * model.inner, model.hidden), tokens, EPS)
    yield linear_requests.decode_linear(machine, layout(model.hidden, model.inner), tokens, x=kind, residual=True)
    yield linear_requests.decode_best(machine, layout(model.vocab, model.hidden), tokens, EPS)


def prefill_kernels(
    machine: Architecture, model: Model, format: str, tokens: int, cache: str = "bf16"
) -> Iterator[KernelRequest]:
    """The same with matrix units; up to 16 tokens norms are made in the products."""

    def layout(rows: int, columns: int) -> RowLayout:
        return RowLayout(format_of(format), rows, columns)

    heads = attention_of(model, cache)
    joined = (model.heads + 2 * model.kv_heads) * model.head
    kind = linear_requests.between(layout(1, 64))
    narrow = tokens <= NARROW and format != "f16"
    x = "fp32" if narrow else kind
    yield attention_requests.prefill_qkv(
        machine, layout(joined, model.hidden), heads, tokens, x=x, norm=narrow, eps=EPS
    )
    yield linear_requests.prefill_gate_up(
        machine, layout(2 * model.inner, model.hidden), tokens, x=x, norm=narrow, eps=EPS
    )
    yield linear_requests.prefill_linear(machine, layout(model.hidden, model.inner), tokens, x=kind, residual=True)


def eight_bit_kernels(machine: Architecture, model: Model, tokens: int = 2048) -> Iterator[KernelRequest]:
    """Products of large steps whose activations are 8-bit floats as their weights are, and what makes those."""
    fmt, kind = format_of("e4m3fn"), step_requests.EIGHT_BITS[machine.e4m3]
    joined = RowLayout(fmt, (model.heads + 2 * model.kv_heads) * model.head, model.hidden)
    stacked, back = RowLayout(fmt, 2 * model.inner, model.hidden), RowLayout(fmt, model.hidden, model.inner)
    mixture = Experts(16, 1, SCOUT.hidden, SCOUT.inner, fmt)
    products = (
        linear_requests.prefill_linear(machine, back, tokens, x=kind, residual=True),
        linear_requests.prefill_gate_up(machine, stacked, tokens, x=kind, norm=False, eps=EPS),
        attention_requests.prefill_qkv(machine, joined, attention_of(model), tokens, x=kind, norm=False, eps=EPS),
        expert_requests.prefill_gate_up(machine, mixture, 128, x=kind, norm=False, eps=EPS),
        expert_requests.prefill_down(machine, mixture, 128, True),
    )
    yield from (linear_requests.eight_bit(product, machine) for product in products)
    yield step_requests.norm_rows(machine, model.hidden, kind, EPS)
    yield step_requests.norm_rows(machine, model.inner, kind, 0.0, x="bf16", norm=False)


def attention_kernels(
    machine: Architecture, model: Model, cache: str = "bf16", chunk: int = 0
) -> Iterator[KernelRequest]:
    """Decoding split 16 ways and not at all, and prefill."""
    heads = attention_of(model, cache, chunk)
    yield attention_requests.decode_attention(machine, heads, 16, "bf16")
    yield attention_requests.decode_attention(machine, heads, 1, "bf16")
    yield attention_requests.prefill_attention(machine, heads, "bf16")


def step_kernels(machine: Architecture, model: Model, format: str) -> Iterator[KernelRequest]:
    """What runs once a step."""
    table = RowLayout(format_of(format), model.vocab, model.hidden)
    yield step_requests.embed_rows(machine, table)
    yield step_requests.rope_angles(model.head // 2)
    yield step_requests.norm_rows(machine, model.hidden, "bf16", EPS)
    if machine.e4m3:
        yield step_requests.norm_rows(
            machine, model.hidden, {"e4m3fn": "fp8e4nv", "e4m3fnuz": "fp8e4b8"}[machine.e4m3], EPS
        )
    yield step_requests.best_of_tiles(machine, model.vocab // 8)
    yield step_requests.best_of_logits(model.vocab)
    yield from sample_kernels(machine, model.vocab)


def sample_kernels(machine: Architecture, vocab: int) -> Iterator[KernelRequest]:
    """What draws a token from logits."""
    yield sample_calls.tile_bests(machine, vocab)
    yield sample_calls.draw(machine, vocab)


def expert_kernels(machine: Architecture, count: int, top: int, format: str) -> Iterator[KernelRequest]:
    """The mixture of a Llama 4 layer."""
    experts = Experts(count, top, SCOUT.hidden, SCOUT.inner, format_of(format))
    yield expert_requests.route(machine, count, top, 1)
    yield expert_requests.route(machine, count, top, 512)
    yield expert_requests.decode_gate_up(machine, experts, EPS)
    yield expert_requests.decode_down(machine, experts, top == 1)
    kind = linear_requests.between(experts.gate_up)
    yield expert_requests.prefill_gate_up(machine, experts, 32, x=kind, norm=False, eps=EPS)
    yield expert_requests.prefill_gate_up(machine, experts, 1, x="fp32", norm=format != "f16", eps=EPS)
    yield expert_requests.prefill_down(machine, experts, 32, top == 1)
    if top > 1:
        yield expert_requests.scatter(machine, SCOUT.hidden, top)


def llama4_kernels(machine: Architecture, format: str) -> Iterator[KernelRequest]:
    """The attention of Scout: chunked with a norm of q and k, and tempered without rotation."""
    layout = RowLayout(format_of(format), (SCOUT.heads + 2 * SCOUT.kv_heads) * SCOUT.head, SCOUT.hidden)
    plain = attention_of(SCOUT, chunk=8192)
    normed = Heads(plain.heads, plain.cache, "bf16", plain.scale, qk_eps=EPS)
    tempered = Heads(plain.heads, plain.cache, "bf16", plain.scale, rope=False, floor=8192, temperature=0.1)
    for heads in (normed, tempered):
        yield attention_requests.prefill_qkv(machine, layout, heads, 512, x="bf16", norm=False, eps=EPS)
        yield attention_requests.decode_qkv(machine, layout, heads, 1, EPS)
    yield from attention_kernels(machine, SCOUT, chunk=8192)


def named(name: str) -> Architecture:
    """The instruction set called `name`."""
    return architecture(name)
