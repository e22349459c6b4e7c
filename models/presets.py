"""Every official Llama by name, as data: a table for each family, tiny shapes for tests, and the lookup by name.

Sizes are those of the official configs. Chat and instruct models share the row of their base model where only the
weights differ; where the config differs too (context of Llama 4, tile size of 11B Vision) they have rows of their own.
"""

from __future__ import annotations

from dataclasses import replace

from llamac.errors import LlamacError, did_you_mean

from .llama.config import AttentionPattern, LlamaConfig, MixtureOfExperts, RopeScaling
from .llama.vision_config import Llama4Vision, MllamaVision
from .official_names import RELEASES_APART, REPOSITORIES, bare_name

LLAMA31 = RopeScaling("llama3", 8.0, 1.0, 4.0, 8192)
LLAMA32 = RopeScaling("llama3", 32.0, 1.0, 4.0, 8192)
SCOUT = RopeScaling("llama3", 16.0, 1.0, 1.0, 8192)

# fmt: off
Row = tuple[int, int, int, int, int, int, int, float, RopeScaling | None, int, bool, str]
DENSE: dict[str, Row] = {
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
    "llama-guard-2-8b":  ( 4096,   32,   32,   8, 128,  14336, 128256,     5e5, None,       4096, False, "bf16"),
    "llama-guard-3-1b":  ( 2048,   16,   32,   8,  64,   8192, 128256,     5e5, LLAMA32,  131072, True,  "bf16"),
    "llama-guard-3-8b":  ( 4096,   32,   32,   8, 128,  14336, 128256,     5e5, LLAMA31,  131072, False, "bf16"),
    "smollm2-135m":      (  576,   30,    9,   3,  64,   1536,  49152,     1e5, None,       8192, True,  "bf16"),
    "tiny":              (   64,    2,    4,   2,  16,    128,    256,     1e4, None,        512, True,  "f32"),
    "tiny-untied":       (   64,    2,    4,   1,  16,    160,    259,     1e4, None,        512, False, "bf16"),
    "tiny-llama3":       (   96,    3,    6,   2,  16,    200,    263,     5e5, LLAMA32,  131072, True,  "bf16"),
}
"""Llama 2, 3, 3.1, 3.2 text, 3.3, the text guards; then shapes that no release has."""

VISION: dict[str, tuple[str, int, int, int]] = {
    # name                            text model with its layers     layers, cross-attention layers  pixels of a tile
    "llama-3.2-11b-vision":          ("llama-3.1-8b",                 40,     8,                      448),
    "llama-3.2-11b-vision-instruct": ("llama-3.1-8b",                 40,     8,                      560),
    "llama-3.2-90b-vision":          ("llama-3.1-70b",               100,    20,                      560),
    "llama-guard-3-11b-vision":      ("llama-3.1-8b",                 40,     8,                      560),
}
"""Llama 3.2 Vision: the widths of a Llama 3.1 model, and a cross-attention layer at 3, 8, 13 and so on."""

LLAMA4: dict[str, tuple[int, int, int, RopeScaling | None, bool, int]] = {
    # name                       experts  MoE every  dense inner  scaling  qk norm     context
    "llama-4-scout":             ( 16,    1,         16384,       SCOUT,   True,        262144),
    "llama-4-scout-instruct":    ( 16,    1,         16384,       SCOUT,   True,      10485760),
    "llama-4-maverick":          (128,    2,         16384,       None,    False,       262144),
    "llama-4-maverick-instruct": (128,    2,         16384,       None,    False,      1048576),
    "llama-guard-4-12b":         (  0,    0,          8192,       SCOUT,   True,          8192),
}
"""Llama 4, and the guard that is Scout with the routed experts cut away. MoE every n: layers n-1, 2n-1 and so on."""
# fmt: on

_LLAMA4_LAYERS = 48
_LLAMA4_VISION = Llama4Vision(
    hidden_size=1408,
    intermediate_size=5632,
    layers=34,
    heads=16,
    image_size=336,
    patch_size=14,
    channels=3,
    rope_theta=1e4,
    norm_eps=1e-5,
    pixel_shuffle_ratio=0.5,
    adapter_hidden=4096,
    adapter_output=4096,
    image_token=200092,
    image_start_token=200080,
    image_end_token=200081,
)
_ASPECT_RATIOS = ((1, 1), (1, 2), (1, 3), (1, 4), (2, 1), (2, 2), (3, 1), (4, 1))


def preset(name: str) -> LlamaConfig:
    """The config of a preset or of an official repository's name, without weights.

    LLC0309, with the near match, for a name that is none, and for a release that stores its weights in its own way.
    """
    found = find_preset(name)
    if found is None:
        raise unknown_preset(name)
    if found in LLAMA4:
        return _llama4(found)
    return _vision(found) if found in VISION else _dense(found)


def preset_names() -> tuple[str, ...]:
    """Every preset, in the order of the tables."""
    return (*DENSE, *VISION, *LLAMA4)


def find_preset(name: str) -> str | None:
    """The preset that a name or an official repository's name stands for, or None."""
    if name in DENSE or name in VISION or name in LLAMA4:
        return name
    return _BY_REPOSITORY.get(bare_name(name))


def unknown_preset(name: str) -> LlamacError:
    """LLC0309 for a name that is no preset, with what may be meant."""
    bare, where = bare_name(name), name[:200]
    if bare in RELEASES_APART:
        base, stored = RELEASES_APART[bare]
        reason = f"this release {stored}: a preset would describe another checkpoint"
        return LlamacError("LLC0309", where, reason, f"pass the path of its files, or the preset {base}")
    within = [known for known in preset_names() if len(bare) > 3 and bare in known]
    near = f" (did you mean {' or '.join(map(repr, within[:3]))}?)" if within else did_you_mean(bare, preset_names())
    hint = "use that name, or the path of a checkpoint" if near else f"presets: {', '.join(preset_names())}"
    return LlamacError("LLC0309", where, f"neither a file or folder nor a preset{near}", hint)


def _dense(name: str) -> LlamaConfig:
    hidden, layers, heads, kv_heads, head_dim, inner, vocabulary, theta, scaling, context, tied, dtype = DENSE[name]
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


def _vision(name: str) -> LlamaConfig:
    text, layers, crossing, pixels = VISION[name]
    vision = MllamaVision(
        hidden_size=1280,
        intermediate_size=5120,
        layers=32,
        global_layers=8,
        heads=16,
        image_size=pixels,
        patch_size=14,
        channels=3,
        norm_eps=1e-5,
        max_tiles=4,
        taps=(3, 7, 15, 23, 30),
        output_size=7680,
        supported_aspect_ratios=_ASPECT_RATIOS,
        image_token=128256,
    )
    cross_layers = tuple(range(3, 3 + 5 * crossing, 5))
    return replace(
        _dense(text), name=name, layers=layers, architecture="mllama", cross_layers=cross_layers, vision=vision
    )


def _llama4(name: str) -> LlamaConfig:
    experts, every, inner, scaling, qk_norm, context = LLAMA4[name]
    layers = _LLAMA4_LAYERS
    moe = MixtureOfExperts(experts, 1, 8192, tuple(range(every - 1, layers, every))) if experts else None
    return LlamaConfig(
        name=name,
        hidden_size=5120,
        intermediate_size=inner,
        layers=layers,
        heads=40,
        kv_heads=8,
        head_dim=128,
        vocab_size=202048,
        rms_norm_eps=1e-5,
        rope_theta=5e5,
        rope_scaling=scaling,
        context_length=context,
        tied_head=False,
        dtype="bf16",
        rope_style="interleaved",
        architecture="llama4",
        moe=moe,
        attention=AttentionPattern(tuple(range(3, layers, 4)), 8192, qk_norm, 8192.0, 0.1),
        vision=_LLAMA4_VISION,
    )


_BY_REPOSITORY = {bare_name(repository): name for name, names in REPOSITORIES.items() for repository in names}
