"""Kernels compiled at the shapes of real models, without a GPU: no spills, within budgets, the right instructions."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from machine_code import instructions, ptxas_report
from model_kernels import (
    MODELS,
    attention_kernels,
    decode_kernels,
    eight_bit_kernels,
    expert_kernels,
    llama4_kernels,
    named,
    prefill_kernels,
    sample_kernels,
    step_kernels,
)

from llamac.backends.gpu.architectures import ARCHITECTURES, architecture
from llamac.backends.gpu.compile import CompiledKernel, compile_request
from llamac.backends.gpu.linear_requests import few_tokens
from llamac.backends.gpu.request import KernelRequest
from llamac.ir.layouts import format_of
from llamac.ir.row_layouts import RowLayout

DECODE_REGISTERS = {"cuda": 216, "hip": 256}
"""Registers of a thread in decoding, which are given out by eights. A CUDA unit then runs at least one block of 256
threads, whose eight open 16-byte loads a thread are the 32 KB that hide the latency of memory; with more an AMD unit
runs one wave at a time."""

MAY_SPILL = {"rope_angles", "gfx1100"}
"""Sines of large angles are reduced with a table in memory, once a step. RDNA3 has half the registers of its siblings
and no tiles of its own yet."""

SPILLS = {
    ("decode_linear", "sm_90"): 16,
    ("prefill_attention", "sm_86"): 8,
    ("prefill_attention", "sm_89"): 24,
    ("prefill_attention", "sm_120"): 8,
    ("prefill_expert_down", "sm_80"): 8,
    ("prefill_gate_up", "sm_100"): 8,
    ("route", "gfx90a"): 88,
    ("route", "gfx942"): 80,
    ("route", "gfx950"): 88,
}
"""Bytes of a thread that some shape of a kernel keeps in memory: their tiles wait for timings on the GPU itself."""

QUICK, EVERY = ("sm_80", "sm_90", "gfx942"), tuple(ARCHITECTURES)
FORMATS = ("bf16", "f16", "e4m3fn", "i8g32s16", "i4g32s16", "i4g128s16", "u4g32s16m16")


def compiled(requests: Iterable[KernelRequest], target: str) -> list[tuple[KernelRequest, CompiledKernel]]:
    """Each request compiled and held against the budgets."""
    made = [(request, compile_request(request, target)) for request in requests]
    machine = architecture(target)
    for request, kernel in made:
        where = f"{request.label} for {target}"
        assert kernel.shared_bytes <= machine.shared_bytes, (
            f"{where} needs {kernel.shared_bytes} bytes of shared memory"
        )
        assert kernel.global_scratch_bytes == kernel.profile_scratch_bytes == 0, where
        if not {request.kernel, target} & MAY_SPILL:
            most_spilled = SPILLS.get((request.kernel, target), 0)
            assert kernel.spilled_bytes <= most_spilled, f"{where} spills {kernel.spilled_bytes} bytes"
        budgeted = target in QUICK and request.kernel.startswith("decode")
        most = DECODE_REGISTERS[machine.kind] if budgeted else machine.registers
        assert kernel.registers <= most, f"{where} takes {kernel.registers} registers"
        assert [p.name for p in kernel.parameters] == [n for n in order(request) if n in request.signature]
    return made


def matrix_instruction(request: KernelRequest, target: str) -> str:
    """What a large product must be made of: the wide instructions take no less than 64 weight rows."""
    rows = int(request.constants.get("BN") or request.constants.get("BP") or 64)
    return named(target).matrix_instruction if rows >= 64 else {"cuda": "mma.sync"}.get(named(target).kind, "v_")


def order(request: KernelRequest) -> list[str]:
    """The parameter names of a kernel in order."""
    from llamac.backends.gpu.toolchain import load_kernel

    return list(load_kernel(request.family, request.kernel).arg_names)


def check_wide_loads(request: KernelRequest, kernel: CompiledKernel) -> None:
    """Weights come 16 bytes a load, and the first ones before anything waits for the previous kernel."""
    found = instructions(kernel)
    rows = sum(int(request.constants.get(key) or 0) for key in ("BN", "BP"))
    if kernel.architecture.startswith("gfx"):
        wide = [name for name in found if name.endswith(("load_dwordx4", "load_b128"))]  # RDNA3's name is the other
        assert len(wide) >= rows, f"{request.label}: {len(wide)} wide loads"
        return
    streamed = [name for name in found if name.startswith("LDG") and ".EF" in name]  # only weights are evicted first
    assert streamed and all(name.endswith(".128") for name in streamed), f"{request.label}: {set(streamed)}"
    if kernel.dependent_launch:
        early = found[: found.index("ACQBULK")]
        assert sum(name in streamed for name in early) >= rows, f"{request.label}: few loads before the wait"


@pytest.mark.parametrize("target", QUICK)
@pytest.mark.parametrize("format", ["bf16", "i4g128s16"])
def test_decoding_8b(target: str, format: str) -> None:
    for request, kernel in compiled(decode_kernels(named(target), MODELS["8b"], format, 1), target):
        check_wide_loads(request, kernel)


@pytest.mark.parametrize("target", QUICK)
def test_prefill_8b(target: str) -> None:
    """Products and attention are made by matrix units: wgmma on Hopper, MFMA on MI300."""
    requests = [*prefill_kernels(named(target), MODELS["8b"], "bf16", 2048)]
    for request, kernel in compiled(requests, target):
        assert matrix_instruction(request, target) in kernel.assembly, request.label


@pytest.mark.parametrize("target", QUICK)
def test_attention_8b(target: str) -> None:
    *_, (request, prefill) = compiled(attention_kernels(named(target), MODELS["8b"]), target)
    assert named(target).matrix_instruction in prefill.assembly, request.label


def test_the_kernels_around_the_layers() -> None:
    compiled(step_kernels(named("sm_90"), MODELS["1b"], "bf16"), "sm_90")


def test_experts() -> None:
    for request, kernel in compiled(expert_kernels(named("sm_90"), 16, 1, "bf16"), "sm_90"):
        if request.kernel.startswith("prefill"):
            assert matrix_instruction(request, "sm_90") in kernel.assembly, request.label


def test_eight_bit_products_are_made_as_such() -> None:
    """Hopper multiplies e4m3fn, MI300 e4m3fnuz; neither is emulated."""
    for target, number in (("sm_90", 0), ("gfx942", 1)):
        check_eight_bits(target, list(eight_bit_kernels(named(target), MODELS["8b"]))[number : number + 1])


EIGHT_BITS = {
    "sm_89": ".e4m3.e4m3", "sm_90": ".e4m3.e4m3", "sm_100": "kind::f8f6f4", "sm_120": ".e4m3.e4m3",
    "gfx942": "v_mfma_f32_32x32x16_fp8_fp8", "gfx950": "f8f6f4",
}  # fmt: skip
"""What the assembly of a product of 8-bit floats says, where a target has such."""


def check_eight_bits(target: str, requests: list[KernelRequest]) -> None:
    for request, kernel in compiled(requests, target):
        if request.kernel != "norm_rows":
            instruction = matrix_instruction(request, target)
            assert instruction in kernel.assembly, request.label
            # Heads of 64 are too narrow for the wide instructions, and the others of these machines take 16 bits.
            if instruction == named(target).matrix_instruction:
                assert EIGHT_BITS[target] in kernel.assembly, request.label


@pytest.mark.slow
@pytest.mark.parametrize("target", EIGHT_BITS)
@pytest.mark.parametrize("model", ["1b", "8b"])
def test_every_eight_bit_product(target: str, model: str) -> None:
    check_eight_bits(target, list(eight_bit_kernels(named(target), MODELS[model])))


@pytest.mark.slow
def test_the_portable_build_of_eight_bit_products() -> None:
    """Its matrix units have none: the same bytes are decoded, of weights and activations."""
    compiled(eight_bit_kernels(named("sm_80"), MODELS["8b"]), "sm_80")


def test_narrow_tiles() -> None:
    for request, kernel in compiled(prefill_kernels(named("sm_90"), MODELS["8b"], "bf16", 16), "sm_90"):
        assert "mma.sync" in kernel.assembly and "cp.async" in kernel.assembly, request.label


def test_registers_and_spills_are_what_ptxas_reports() -> None:
    request = next(decode_kernels(named("sm_80"), MODELS["8b"], "bf16", 1))
    kernel = compile_request(request, "sm_80")
    assert ptxas_report(kernel) == (kernel.registers, kernel.spilled_bytes)


SWEEP = [
    *((target, model, format) for target in QUICK for model in ("1b", "8b") for format in FORMATS),
    *((target, "8b", format) for target in EVERY if target not in QUICK for format in ("bf16", "e4m3fn", "i4g32s16")),
    *(("sm_90", model, format) for model in ("70b", "smollm2-135m") for format in ("bf16", "u4g32s16m16")),
]


@pytest.mark.slow
@pytest.mark.parametrize(("target", "model", "format"), SWEEP)
def test_every_target_model_and_format(target: str, model: str, format: str) -> None:
    machine, sizes = named(target), MODELS[model]
    layout = RowLayout(format_of(format), 1, sizes.hidden)
    for tokens in [t for t in (1, 2, 4) if t <= few_tokens(machine, layout)]:
        for request, kernel in compiled(decode_kernels(machine, sizes, format, tokens), target):
            check_wide_loads(request, kernel)
    for tokens in (16, 2048):
        for request, kernel in compiled(prefill_kernels(machine, sizes, format, tokens), target):
            if tokens > 16:
                assert matrix_instruction(request, target) in kernel.assembly, request.label


@pytest.mark.slow
@pytest.mark.parametrize("target", EVERY)
@pytest.mark.parametrize("model", ["1b", "8b"])
def test_every_attention(target: str, model: str) -> None:
    machine = named(target)
    eight = "fp8e4nv" if machine.converts_e4m3 else "u8"
    for cache in ("bf16", "fp16", eight):
        compiled(attention_kernels(machine, MODELS[model], cache), target)
        compiled(list(decode_kernels(machine, MODELS[model], "bf16", 1, cache))[:1], target)
    compiled(step_kernels(machine, MODELS[model], "bf16"), target)


@pytest.mark.slow
@pytest.mark.parametrize("target", EVERY)
def test_drawing_a_token(target: str) -> None:
    """Over the vocabularies of Llama 3 and 4, whose bests one program holds in registers; half of them are left."""
    for vocab in (128256, 202048):
        for request, kernel in compiled(sample_kernels(named(target), vocab), target):
            assert kernel.registers <= 128, f"{request.label} takes {kernel.registers} registers"


@pytest.mark.slow
@pytest.mark.parametrize("target", EVERY)
@pytest.mark.parametrize("format", ["bf16", "e4m3fn", "i4g32s16"])
def test_llama4(target: str, format: str) -> None:
    machine = named(target)
    compiled(llama4_kernels(machine, format), target)
    compiled(expert_kernels(machine, 16, 1, format), target)
    compiled(expert_kernels(machine, 128, 2, format), target)
