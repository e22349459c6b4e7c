"""Tiny models as launch plans, their kernels described but not compiled: what the simulator runs."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from plan_simulator import PlanSimulator, Rows

from llamac.artifact.launch_plan import LaunchPlan
from llamac.artifact.launch_plan_file import read_plan, write_plan
from llamac.backends.gpu.architectures import architecture
from llamac.backends.gpu.build import PlanRequest, wanted_kernels, written
from llamac.backends.gpu.compile import CompiledKernel, Parameter
from llamac.backends.gpu.encoder_calls import encoder_calls
from llamac.backends.gpu.launches import bucket_calls, buffers, step_shapes
from llamac.backends.gpu.request import KernelRequest
from llamac.backends.gpu.toolchain import load_kernel
from llamac.driver import CompiledGraph, compile_graph
from llamac.ir.evaluator import WeightEvaluator
from llamac.ir.interpreter import Interpreter
from llamac.ir.kv_groups import whole_sequences
from llamac.materialize import write_weights
from llamac.models.checkpoint import Checkpoint
from llamac.models.llama.config import AttentionPattern, LlamaConfig, MixtureOfExperts
from llamac.models.random_weights import random_checkpoint
from llamac.passes.pipelines import WHOLE, Share, parse_quantization

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Tiny:
    """A tiny model: sizes that no tile divides."""

    dtype: str = "f32"
    layers: int = 2
    hidden: int = 40
    inner: int = 40
    heads: int = 6
    kv_heads: int = 2
    vocab: int = 37
    tied: bool = False
    experts: int = 0
    top: int = 1
    seed: int = 3

    def config(self) -> LlamaConfig:
        """As llamac names it; with experts a Llama 4: every second layer a mixture, chunks of 16, every second full."""
        moe = MixtureOfExperts(self.experts, self.top, 24, (1,)) if self.experts else None
        pattern = AttentionPattern((1,), 16, True, 4.0, 0.1) if self.experts else None
        return LlamaConfig(
            name="tiny", hidden_size=self.hidden, intermediate_size=self.inner, layers=self.layers, heads=self.heads,
            kv_heads=self.kv_heads, head_dim=16, vocab_size=self.vocab, rms_norm_eps=1e-5, rope_theta=1e4,
            rope_scaling=None, context_length=512, tied_head=self.tied, dtype=self.dtype, moe=moe, attention=pattern,
            rope_style="interleaved" if self.experts else "half_split",
            architecture="llama4" if self.experts else "llama",
        )  # fmt: skip


@dataclass
class Planned:
    """A model with its plan for one architecture."""

    checkpoint: Checkpoint
    compiled: CompiledGraph
    plan: LaunchPlan
    units: int
    files: list[Path] = field(default_factory=list)

    def logits(self, prompts: list[list[int]], exact: bool = False) -> list[Array]:
        """What the IR means by the kernel-level graph, after every id of each prompt."""
        interpreter = Interpreter(self.compiled.module, self.checkpoint.read_rows, exact=exact)
        (found, *_) = interpreter.run(whole_sequences(self.compiled.module.step, prompts))
        return np.split(np.asarray(found, np.float64), np.cumsum([len(p) for p in prompts])[:-1])

    @contextmanager
    def simulated(self, context: int = 64) -> Iterator[PlanSimulator]:
        """The plan over the model's weights, as the compiler would write them."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "weights.bin"
            with path.open("wb") as file:
                evaluator = WeightEvaluator(self.checkpoint.read_rows)
                write_weights(self.compiled.placed, evaluator, file, 1 << 26, lambda nbytes: None)
            with path.open("ab") as file:
                file.write(bytes(self.compiled.limits.weight_bytes - path.stat().st_size))
            with PlanSimulator(self.plan, path, 0, context) as simulator:
                yield simulator


def described(request: KernelRequest, target: str) -> CompiledKernel:
    """What a launch must know of a kernel, without its code."""
    names = load_kernel(request.family, request.kernel).arg_names
    assert set(names) == {*request.signature, *request.constants}, f"{request.label} does not fit its kernel"
    parameters = tuple(Parameter(n, request.signature[n], 8) for n in names if n in request.signature)
    machine = architecture(target)
    dependent = request.options.dependent_launch and machine.dependent_launch
    return CompiledKernel(request.kernel, target, b"", "", parameters, 4, 1, 0, 0, 0, 0, 0, dependent)


def planned(
    model: LlamaConfig | Checkpoint, machine: str = "sm_90", quantize: str = "keep", kv: str | None = None,
    max_tokens: int = 24, units: int = 8, share: Share = WHOLE,
) -> Planned:  # fmt: skip
    """The plan of a model for one architecture, read back from its own text."""
    checkpoint = model if isinstance(model, Checkpoint) else random_checkpoint(model, 3)
    quantization = parse_quantization(quantize)
    compiled = compile_graph(checkpoint, quantization, kv, max_tokens, None, [], kind="gpu", share=share)
    row = architecture(machine)
    shapes = step_shapes(max_tokens, compiled.module)
    buckets = [bucket_calls(compiled.module, compiled.placed, row, units, shape) for shape in shapes]
    encoder = encoder_calls(compiled.image, compiled.placed, row, units) if compiled.image is not None else None
    memory = buffers(compiled.module, buckets, "weights/gpu-rows16.bin", compiled.limits.weight_bytes, encoder)
    request = PlanRequest(
        "test", row, False, buckets, memory, compiled.limits.vocab, 256, share.ranks, min(share.rank, 1), encoder
    )
    kernels = {key: described(*item) for key, item in wanted_kernels([request]).items()}
    (plan,) = written([request], kernels).plans
    again = read_plan(write_plan(plan), "plan")
    assert again == plan
    return Planned(checkpoint, compiled, again, units)


def relative_error(found: Array, wanted: Array) -> float:
    """Largest difference over largest magnitude."""
    assert found.shape == wanted.shape and np.isfinite(found).all()
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


__all__ = ["Planned", "Rows", "Tiny", "described", "planned", "relative_error"]
