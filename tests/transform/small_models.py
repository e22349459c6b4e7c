"""Small models of many shapes, by name of what they have, and the validation of a pipeline on one."""

from __future__ import annotations

from dataclasses import dataclass, replace

from llamac.certificate import validate
from llamac.models.llama.config import AttentionPattern, LlamaConfig, MixtureOfExperts, RopeScaling
from llamac.models.llama.shrink import small_tensors
from llamac.models.llama.weights import expected_shapes
from llamac.passes.pipelines import parse_quantization
from llamac.transform.outside import Edit
from llamac.transform.validation import Verdict

LLAMA3 = RopeScaling("llama3", 8.0, 1.0, 4.0, 64)
"""All three branches of the scaling are taken by a head of 16."""

BASE = LlamaConfig(
    name="small",
    hidden_size=40,
    intermediate_size=136,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=16,
    vocab_size=61,
    rms_norm_eps=1e-5,
    rope_theta=10000.0,
    rope_scaling=LLAMA3,
    context_length=512,
    tied_head=False,
    dtype="f32",
    rope_style="interleaved",
)

LLAMA4 = replace(
    BASE,
    hidden_size=48,
    intermediate_size=56,
    layers=4,
    rms_norm_eps=1e-3,
    architecture="llama4",
    moe=MixtureOfExperts(5, 2, 32, (1, 3)),
    attention=AttentionPattern(unrotated=(3,), chunk=12, qk_norm=True, temperature_floor=5.0, temperature_scale=0.5),
)
"""Every kind of layer but a dense one without rotation; chunks end inside pages of 8, within a scenario's 19 tokens."""


def encodings_of(config: LlamaConfig, matrix: str, norm: str = "f32", **special: str) -> dict[str, str]:
    """Encoding of every weight; `special` names the last part of a weight, such as v or down."""
    found = {}
    for name, shape in expected_shapes(config).items():
        found[name] = norm if len(shape) == 1 else special.get(name.rsplit(".", 1)[-1], matrix)
    return found


@dataclass(frozen=True)
class SmallModel:
    """What is compiled: a config, how its weights are stored, and the options of the pipeline."""

    config: LlamaConfig = BASE
    matrix: str = "f32"
    quantize: str = "keep"
    kv_dtype: str = "f16"
    special: tuple[tuple[str, str], ...] = ()

    @property
    def name(self) -> str:
        """What a test's id says."""
        c = self.config
        kind = "" if c.architecture == "llama" else f"{c.architecture}-"
        stored = "-".join([self.matrix, *(f"{role}={encoding}" for role, encoding in self.special)])
        return f"{kind}{c.dtype}-{c.rope_style}-{'tied' if c.tied_head else 'untied'}-{stored}-{self.quantize}".replace(
            ":", "-"
        )

    def run(self, edit: Edit = list, seed: int = 20) -> list[Verdict]:
        """Validate the pipeline as `edit` leaves it."""
        tensors = small_tensors(self.config, encodings_of(self.config, self.matrix, **dict(self.special)))
        verdicts, _ = validate(self.config, tensors, parse_quantization(self.quantize), self.kv_dtype, seed, edit)
        return verdicts


def with_config(**fields: object) -> SmallModel:
    """The base model with other fields of the config."""
    return SmallModel(replace(BASE, **fields))  # type: ignore[arg-type]


def with_llama4(**fields: object) -> SmallModel:
    """The base Llama 4 with other fields of the config, or of its attention pattern or mixture."""
    pattern, moe, others = LLAMA4.attention, LLAMA4.moe, {}
    assert pattern is not None and moe is not None
    for name, value in fields.items():
        if name in AttentionPattern.__dataclass_fields__:
            pattern = replace(pattern, **{name: value})  # type: ignore[arg-type]
        elif name in ("experts", "experts_per_token", "moe_layers"):
            moe = replace(moe, **{name.removeprefix("moe_"): value})  # type: ignore[arg-type]
        else:
            others[name] = value
    return SmallModel(replace(LLAMA4, attention=pattern, moe=moe, **others))  # type: ignore[arg-type]
