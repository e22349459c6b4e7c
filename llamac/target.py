"""Targets as data rows: what code is generated for, and what a machine needs to run it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from llamac.errors import LlamacError, did_you_mean


@dataclass(frozen=True)
class Target:
    """One row. `triple` and `cpu` are the C compiler's names; `requires` are /proc/cpuinfo feature flags.

    For a GPU, `cpu` is the instruction set, and so is what is required.
    `layout` names how weights lie in memory: targets that share it share the weights of an artifact. `ranks`: among
    how many processes, each with a share of the weights, the model is divided; the name then ends in their number.
    """

    name: str
    kind: str
    triple: str
    cpu: str
    requires: tuple[str, ...]
    layout: str
    summary: str
    ranks: int = 1

    @property
    def base(self) -> str:
        """The name of the row, without the number of ranks."""
        return self.name.removesuffix(f":{self.ranks}") if self.ranks > 1 else self.name

    @property
    def stem(self) -> str:
        """The name as a member of an artifact may have it."""
        return self.name.replace(":", "-x") if self.ranks > 1 else self.name

    def share(self, rank: int) -> str:
        """The layout of the weights of one rank."""
        return self.layout if self.ranks == 1 else f"{self.layout}.{rank}of{self.ranks}"


_V3 = ("abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "popcnt")
_V4 = (*_V3, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")
_AVX512_BYTES = ("avx512vbmi", "avx512_vbmi2", "avx512_bitalg", "avx512_vpopcntdq", "avx512ifma", "gfni")
_X86 = "x86_64-linux-gnu.2.28"
_ARM = "aarch64-linux-gnu.2.28"

TARGETS: dict[str, Target] = {
    t.name: t
    for t in (
        Target("x86-64-v3", "cpu", _X86, "x86_64_v3", _V3, "cpu-panel16", "AVX2 and FMA: Haswell, Zen 1 and later"),
        Target(
            "x86-64-v3-vnni",
            "cpu",
            _X86,
            "x86_64_v3+avxvnni",
            (*_V3, "avx_vnni"),
            "cpu-panel16",
            "AVX2 with AVX-VNNI: Alder Lake and later, Zen 5",
        ),
        Target("x86-64-v4", "cpu", _X86, "x86_64_v4", _V4, "cpu-panel16", "AVX-512: Skylake-X, Zen 4 and later"),
        Target(
            "znver4",
            "cpu",
            _X86,
            "znver4",
            (*_V4, "avx512_vnni", "avx512_bf16", *_AVX512_BYTES),
            "cpu-panel16",
            "AVX-512 with VNNI and BF16: Zen 4 and later",
        ),
        Target(
            "sapphirerapids",
            "cpu",
            _X86,
            "x86_64_v4+avx512vnni+avx512bf16+avx512vbmi+avx512vbmi2+avx512bitalg+avx512vpopcntdq+avx512ifma+gfni"
            "+amx_tile+amx_int8+amx_bf16",
            (*_V4, "avx512_vnni", "avx512_bf16", *_AVX512_BYTES, "amx_tile", "amx_int8", "amx_bf16"),
            "cpu-panel16",
            "AVX-512 with AMX tiles for integers and bf16: Sapphire Rapids and later",
        ),
        Target(
            "aarch64",
            "cpu",
            _ARM,
            "generic+dotprod",
            ("asimd", "asimddp"),
            "cpu-panel16",
            "NEON with integer dot products: Armv8.2 servers and boards from 2018 on",
        ),
        Target(
            "aarch64-i8mm",
            "cpu",
            _ARM,
            "generic+dotprod+i8mm+bf16",
            ("asimd", "asimddp", "i8mm", "bf16"),
            "cpu-panel16",
            "NEON with 8-bit matrix products and bf16: Neoverse V1 and N2, Armv8.6 and later",
        ),
    )
}
"""Target name -> row, CPU rows from the least to the most demanding."""


@dataclass(frozen=True)
class Gpu:
    """What a GPU can hold and do at most, from its maker's data sheet; dense rates, without structured sparsity.

    memory_bytes: what the driver shows. bandwidth: bytes a second. peaks: multiply-adds counted as two operations a
    second, by the type multiplied; sums are at least f32 or i32. shared_memory: bytes that one block can have.
    link_bandwidth: bytes a second that one GPU can send to the others of its machine, one way. `architecture` is the
    compiler's name of the instruction set.
    """

    name: str
    kind: str
    architecture: str
    memory_bytes: int
    bandwidth: float
    peaks: Mapping[str, float]
    shared_memory: int
    units: int
    link_bandwidth: float
    summary: str


_GPU_ROWS = (
    # name      kind    code        MiB  GB/s   Tera-operations: f32, bf16, int8, fp8   KiB units GB/s  what it is
    ("a100",    "cuda", "sm_80",    81920, 2039,  19.5,  311.9,  623.7,      0,  163, 108, 300, "A100 SXM 80 GB"),
    ("h100",    "cuda", "sm_90a",   81559, 3352,  66.9,  989.4, 1978.9, 1978.9,  227, 132, 450, "H100 SXM 80 GB"),
    ("h200",    "cuda", "sm_90a",  143771, 4800,  66.9,  989.4, 1978.9, 1978.9,  227, 132, 450, "H200 SXM 141 GB"),
    ("b200",    "cuda", "sm_100a", 183359, 7700,  75.0, 2250.0, 4500.0, 4500.0,  227, 148, 900, "B200 SXM 180 GB"),
    ("l40s",    "cuda", "sm_89",    46068,  864,  91.6,  362.1,  733.0,  733.0,   99, 142,  32, "L40S 48 GB"),
    ("rtx4090", "cuda", "sm_89",    24564, 1008,  82.6,  165.2,  660.6,  330.3,   99, 128,  32, "GeForce RTX 4090"),
    ("mi250",   "hip",  "gfx90a",   65536, 1638,  45.3,  181.0,  181.0,      0,   64, 104, 200, "one die of an MI250"),
    ("mi300x",  "hip",  "gfx942",  196608, 5300, 163.4, 1307.4, 2614.9, 2614.9,   64, 304, 448, "MI300X 192 GB"),
    ("mi355x",  "hip",  "gfx950",  294912, 8000, 157.3, 2516.6, 5033.2, 5033.2,  160, 256, 538, "MI355X 288 GB"),
    ("rdna3",   "hip",  "gfx1100",  24576,  960,  61.4,  122.8,  122.8,      0,   64,  96,  32, "Radeon RX 7900 XTX"),
)  # fmt: skip


def _gpu(
    name: str,
    kind: str,
    architecture: str,
    mebibytes: int,
    bandwidth: float,
    f32: float,
    bf16: float,
    int8: float,
    fp8: float,
    kibibytes: int,
    units: int,
    link: float,
    summary: str,
) -> Gpu:
    """A row of the table in its units; f16 is as fast as bf16 everywhere, and fp8 is left out where it is absent."""
    rates = {"f32": f32, "f16": bf16, "bf16": bf16, "int8": int8, "fp8": fp8}
    peaks = {dtype: rate * 1e12 for dtype, rate in rates.items() if rate}
    memory, shared = mebibytes << 20, kibibytes << 10
    return Gpu(name, kind, architecture, memory, bandwidth * 1e9, peaks, shared, units, link * 1e9, summary)


GPUS: dict[str, Gpu] = {row[0]: _gpu(*row) for row in _GPU_ROWS}
"""GPU name -> row: what `llamac plan` counts with, and what kernels are compiled for."""

GPU_LAYOUT = "gpu-rows16"
GPU_KINDS = ("cuda", "hip")

_TVM_ROWS = (
    # LLVM's names: the triple without a version, x86-64-v3 with dashes.
    Target("tvm:llvm", "tvm", "x86_64-linux-gnu", "x86-64-v3", _V3, "cpu-panel16", "TVM's code for AVX2 machines"),
    Target("tvm:metal", "tvm-source", "tvm-metal", "metal", ("metal",), "cpu-panel16", "TVM's source for Apple GPUs"),
    Target("tvm:webgpu", "tvm-source", "tvm-webgpu", "webgpu", ("webgpu",), "cpu-panel16", "TVM's source for browsers"),
    Target("tvm:opencl", "tvm-source", "tvm-opencl", "opencl", ("opencl",), "cpu-panel16", "TVM's source for OpenCL"),
    Target("tvm:cuda", "tvm-source", "tvm-cuda", "cuda", ("cuda",), "cpu-panel16", "TVM's source for CUDA"),
)

TVM_TARGETS: dict[str, Target] = {row.name: row for row in _TVM_ROWS}
"""What TVM makes code for: "tvm" is run on CPUs, of "tvm-source" the file holds the source of the kernels alone."""


ONNX_TARGETS: dict[str, Target] = {
    row.name: row
    for row in (Target("onnxruntime", "onnxruntime", "any-onnxruntime", "cpu", (), "onnx", "ONNX Runtime, on any CPU"),)
}
"""What another runtime runs from a graph."""


SIDE_OF_KIND = {
    "cpu": "cpu",
    "cuda": "gpu",
    "hip": "gpu",
    "tvm": "tvm",
    "tvm-source": "tvm",
    "onnxruntime": "onnx",
}
"""Kind of a target -> the side of the compiler that makes its code."""


@dataclass(frozen=True)
class InstructionSet:
    """Code for every GPU of one instruction set, named by it. units: multiprocessors of a usual one; memory varies."""

    name: str
    kind: str
    units: int
    summary: str


_SET_ROWS = (
    InstructionSet("sm_80", "cuda", 108, "any GPU like A100 and A30"),
    InstructionSet("sm_86", "cuda", 84, "any GPU like RTX 30, A10 and A40"),
    InstructionSet("sm_89", "cuda", 128, "any GPU like RTX 40, L4 and L40"),
    InstructionSet("sm_90", "cuda", 132, "any GPU like H100 and H200"),
    InstructionSet("sm_100", "cuda", 148, "any GPU like B200"),
    InstructionSet("sm_120", "cuda", 170, "any GPU like RTX 50"),
    InstructionSet("gfx90a", "hip", 104, "any GPU like MI210 and MI250"),
    InstructionSet("gfx942", "hip", 304, "any GPU like MI300"),
    InstructionSet("gfx950", "hip", 256, "any GPU like MI350 and MI355"),
    InstructionSet("gfx1100", "hip", 96, "any GPU like RX 7900"),
)

INSTRUCTION_SETS: dict[str, InstructionSet] = {row.name: row for row in _SET_ROWS}
"""Instruction set -> row: targets by their bare name, beside the GPUs of `GPUS`."""


def units_of(name: str) -> int:
    """Multiprocessors of the GPU, or of a usual one of the instruction set, called `name`."""
    return GPUS[name].units if name in GPUS else INSTRUCTION_SETS[name].units


def memory_of(name: str) -> int | None:
    """Bytes of the GPU called `name`; None for an instruction set, whose GPUs differ."""
    return GPUS[name].memory_bytes if name in GPUS else None


def _set_target(row: InstructionSet) -> Target:
    return Target(row.name, row.kind, f"{row.kind}-{row.name}", row.name, (row.name,), GPU_LAYOUT, row.summary)


def _gpu_target(gpu: Gpu) -> Target:
    """What code is generated for, in the terms of every target; the code runs on this instruction set alone."""
    plain = gpu.architecture.removesuffix("a") if gpu.kind == "cuda" else gpu.architecture
    summary = f"{gpu.summary}, {plain}"
    return Target(gpu.name, gpu.kind, f"{gpu.kind}-{plain}", plain, (plain,), GPU_LAYOUT, summary)


MOST_RANKS = 64


def find_target(name: str, host: Target | None = None) -> Target:
    """The row called `name`; `cpu` means `host` (LLC0603 with the near match when there is none).

    `h100:8` is the row h100 for 8 of them, which share a model; `znver4:2` for 2 processes.
    """
    base, _, count = name.rpartition(":")
    if base and count.isascii() and count.isdigit():
        row, ranks = find_target(base, host), int(count[:9])
        if not 2 <= ranks <= MOST_RANKS or row.ranks > 1 or row.kind not in ("cpu", *GPU_KINDS):
            reason = f"{count[:20]} is no number of ranks for {base}"
            raise LlamacError("LLC0603", name, reason, f"give 2 to {MOST_RANKS}, as in h100:8 or cpu:2")
        return replace(row, name=f"{row.name}:{ranks}", ranks=ranks)
    if name == "cpu" and host is not None:
        return host
    if name in GPUS:
        return _gpu_target(GPUS[name])
    if name in INSTRUCTION_SETS:
        return _set_target(INSTRUCTION_SETS[name])
    for others in (TVM_TARGETS, ONNX_TARGETS):
        if name in others:
            return others[name]
    if name not in TARGETS:
        names = ["cpu", *TARGETS, *GPUS, *INSTRUCTION_SETS, *TVM_TARGETS, *ONNX_TARGETS]
        raise LlamacError(
            "LLC0603", name, f"unknown target{did_you_mean(name, names)}", f"choose from {', '.join(names)}"
        )
    return TARGETS[name]


def best_target(architecture: str, features: frozenset[str]) -> Target:
    """The most demanding CPU row that a machine satisfies (LLC0604 when it satisfies none)."""
    rows = [t for t in TARGETS.values() if t.triple.startswith(architecture) and set(t.requires) <= features]
    if not rows:
        reason = f"no CPU target fits a {architecture} machine with its features"
        raise LlamacError("LLC0604", "cpu", reason, f"name a target: {', '.join(TARGETS)}")
    return rows[-1]
