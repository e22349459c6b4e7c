"""Published dense Llama shapes by name, and tiny ones for tests: data, and the lookup by name."""

from __future__ import annotations

from llamac.errors import LlamacError, did_you_mean

from .llama.config import LlamaConfig, RopeScaling

LLAMA31 = RopeScaling("llama3", 8.0, 1.0, 4.0, 8192)
LLAMA32 = RopeScaling("llama3", 32.0, 1.0, 4.0, 8192)

Row = tuple[int, int, int, int, int, int, int, float, RopeScaling | None, int, bool, str]
# fmt: off
ROWS: dict[str, Row] = {
    # name                hidden  layers heads kv  dim   inner  vocab      theta  scaling   context tied  dtype
    "llama-2-7b":        ( 4096,   32,   32,  32, 128,  11008,  32000,     1e4, None,       4096, False, "f16"),
    "llama-2-13b":       ( 5120,   40,   40,  40, 128,  13824,  32000,     1e4, None,       4096, False, "f16"),
    "llama-2-70b":       ( 8192,   80,   64,   8, 128,  28672,  32000,     1e4, None,       4096, False, "f16"),
    "llama-3-8b":        ( 4096,   32,   32,   8, 128,  14336, 128256,     5e5, None,       8192, False, "bf16"),
    "llama-3-70b":       ( 8192,   80,   64,   8, 128,  28672, 128256,     5e5, None,       8192, False, "bf16"),
    "llama-3.1-8b":      ( 4096,   32,   32,   8, 128,  14336, 128256,     5e5, LLAMA31,  131072, False, "bf16"),
    "llama-3.1-70b":     ( 8192,   80,   64,   8, 128,  28672, 128256,     5e5, LLAMA31,  131072, False, "bf16"),
    "llama-3.1-405b":    (16384,  126,  128,   8, 128,  53248, 128256,     5e5, LLAMA31,  131072, False, "bf16"),
    "llama-3.2-1b":      ( 2048,   16,   32,   8,  64,   8192, 128256,     5e5, LLAMA32,  131072, True,  "bf16"),
    "llama-3.2-3b":      ( 3072,   28,   24,   8, 128,   8192, 128256,     5e5, LLAMA32,  131072, True,  "bf16"),
    "llama-3.3-70b":     ( 8192,   80,   64,   8, 128,  28672, 128256,     5e5, LLAMA31,  131072, False, "bf16"),
    "smollm2-135m":      (  576,   30,    9,   3,  64,   1536,  49152,     1e5, None,       8192, True,  "bf16"),
    "tiny":              (   64,    2,    4,   2,  16,    128,    256,     1e4, None,        512, True,  "f32"),
    "tiny-untied":       (   64,    2,    4,   1,  16,    160,    259,     1e4, None,        512, False, "bf16"),
    "tiny-llama3":       (   96,    3,    6,   2,  16,    200,    263,     5e5, LLAMA32,  131072, True,  "bf16"),
}
# fmt: on


def preset(name: str) -> LlamaConfig:
    """The config of a preset, without weights; LLC0309 with the near match for a name that is none."""
    if name not in ROWS:
        reason = f"unknown preset {name[:80]!r}{did_you_mean(name, ROWS)}"
        raise LlamacError("LLC0309", "preset", reason, f"known: {', '.join(ROWS)}")
    hidden, layers, heads, kv_heads, head_dim, inner, vocabulary, theta, scaling, context, tied, dtype = ROWS[name]
    return LlamaConfig(
        name=name,
        hidden_size=hidden,
        intermediate_size=inner,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=vocabulary,
        rms_norm_eps=1e-5,
        rope_theta=theta,
        rope_scaling=scaling,
        context_length=context,
        tied_head=tied,
        dtype=dtype,
        rope_style="half_split",
    )


def preset_names() -> tuple[str, ...]:
    """Every preset, in the order of the table."""
    return tuple(ROWS)
