"""Compiles one Triton kernel ahead of time, without a GPU: the same bytes on any machine and in any folder."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from llamac.errors import LlamacError

from ..compiler_cache import compiler_cache
from .architectures import Architecture, architecture
from .request import CompileOptions, Constant, KernelRequest
from .resources import cuda_resources, hip_resources
from .toolchain import load_kernel, require_triton

ALIGNMENT = 16
"""Bytes that every pointer is promised to be aligned to; 16-byte loads depend on it."""

PORTABLE_CAPABILITY, PORTABLE_PTX = 80, 80
"""The compute capability whose PTX is also kept for later GPUs, and its version: that of CUDA 12.0, for old drivers."""

_SIZES = {"i1": 1, "i8": 1, "u8": 1, "i16": 2, "i32": 4, "u32": 4, "i64": 8, "u64": 8, "fp32": 4, "fp64": 8}


@dataclass(frozen=True)
class Parameter:
    """One launch parameter: its name in the kernel, its Triton type, its bytes in the parameter buffer."""

    name: str
    type: str
    bytes: int


@dataclass(frozen=True)
class CompiledKernel:
    """Machine code and all that a launch needs to know.

    name: the symbol in the code. code: cubin or hsaco. assembly: PTX or AMD assembly. A launch passes `parameters` in
    order, then two pointers to global and profile scratch (null where their sizes are 0). A block has warps * warp
    size threads and needs `shared_bytes` of dynamic shared memory.
    """

    name: str
    architecture: str
    code: bytes = field(repr=False)
    assembly: str = field(repr=False)
    parameters: tuple[Parameter, ...]
    warps: int
    blocks_per_cluster: int
    shared_bytes: int
    global_scratch_bytes: int
    profile_scratch_bytes: int
    registers: int
    spilled_bytes: int
    dependent_launch: bool


def compile_kernel(
    kernel: Any,
    signature: Mapping[str, str],
    constants: Mapping[str, Constant],
    target: str,
    options: CompileOptions | None = None,
) -> CompiledKernel:
    """Compile `kernel`, a function of `kernels/`, for the instruction set `target` (`sm_90`, `gfx942`, ...).

    signature: parameter name -> Triton type (`*bf16`, `i32`) of what is passed at launch. constants: every other
    parameter -> its value. Errors: LLC0607, LLC0608 (Triton), LLC0609 (unknown target, or names that do not fit the
    kernel), LLC0610 (the kernel does not compile there).
    """
    require_triton()
    options = options or CompileOptions()
    where = f"{kernel.__name__} for {target}"
    missing = set(kernel.arg_names) ^ {*signature, *constants}
    if missing or set(signature) & set(constants):
        reason = f"its parameters {', '.join(sorted(missing))} are given twice, or not, or unknown (a bug in llamac)"
        raise LlamacError("LLC0609", where, reason)
    machine = architecture(target)
    with _settings():
        try:
            made = _triton_compile(kernel, signature, constants, machine, options)
        except Exception as error:
            reason = f"the kernel does not compile: {_first_line(error)}"
            raise LlamacError("LLC0610", where, reason, "report the kernel and its constants") from error
        return _described(made, _in_order(kernel, signature), machine, options, where)


def compile_request(request: KernelRequest, target: str) -> CompiledKernel:
    """Compile what a `*_requests` module asked for."""
    kernel = load_kernel(request.family, request.kernel)
    return compile_kernel(kernel, request.signature, request.constants, target, request.options)


def _triton_compile(
    kernel: Any,
    signature: Mapping[str, str],
    constants: Mapping[str, Constant],
    machine: Architecture,
    options: CompileOptions,
) -> Any:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    types = {name: signature.get(name, "constexpr") for name in kernel.arg_names}
    aligned = {
        (place,): [["tt.divisibility", ALIGNMENT]]
        for place, name in enumerate(kernel.arg_names)
        if types[name].startswith("*")
    }
    source = ASTSource(kernel, types, dict(constants), aligned)
    code = machine.capability if machine.kind == "cuda" else machine.name
    return triton.compile(
        source, target=GPUTarget(machine.kind, code, machine.warp), options=_triton_options(machine, options)
    )


def _triton_options(machine: Architecture, options: CompileOptions) -> dict[str, Any]:
    given: dict[str, Any] = {
        "num_warps": options.warps,
        "num_stages": options.stages,
        # Said outright: the default differs between releases.
        "enable_fp_fusion": True,
    }
    if machine.kind == "cuda":
        given["launch_pdl"] = options.dependent_launch and machine.dependent_launch
        if machine.capability == PORTABLE_CAPABILITY:
            given["ptx_version"] = PORTABLE_PTX
        if options.max_registers:
            given["maxnreg"] = options.max_registers
    elif options.waves:
        given["waves_per_eu"] = options.waves
    return given


@contextmanager
def _settings() -> Iterator[None]:
    """Triton's settings for reproducible code: no line numbers, whose paths would be in the bytes, and our cache."""
    from triton import knobs

    folder = os.environ.get("TRITON_CACHE_DIR") or str(compiler_cache("triton"))
    with knobs.compilation.scope(), knobs.cache.scope():
        knobs.compilation.disable_line_info = True
        knobs.cache.dir = folder
        yield


def _in_order(kernel: Any, signature: Mapping[str, str]) -> tuple[Parameter, ...]:
    names = [name for name in kernel.arg_names if name in signature]
    return tuple(Parameter(name, signature[name], _bytes_of(signature[name])) for name in names)


def _bytes_of(type_name: str) -> int:
    return 8 if type_name.startswith("*") else _SIZES[type_name]


def _described(
    made: Any, parameters: tuple[Parameter, ...], machine: Architecture, options: CompileOptions, where: str
) -> CompiledKernel:
    metadata = made.metadata
    if machine.kind == "cuda":
        from triton import knobs

        code, assembly = made.asm["cubin"], made.asm["ptx"]
        used = cuda_resources(assembly, code, knobs.nvidia.cuobjdump.path)
    else:
        code, assembly = made.asm["hsaco"], made.asm["amdgcn"]
        used = hip_resources(assembly)
    expected = (*(p.bytes for p in parameters), 8, 8)
    if used.parameter_bytes[: len(expected)] != expected:
        reason = (
            f"the code takes parameters of {used.parameter_bytes} bytes, {expected} were expected (a bug in llamac)"
        )
        raise LlamacError("LLC0610", where, reason)
    return CompiledKernel(
        name=metadata.name,
        architecture=machine.name,
        code=code,
        assembly=assembly,
        parameters=parameters,
        warps=metadata.num_warps,
        blocks_per_cluster=metadata.num_ctas,
        shared_bytes=metadata.shared,
        global_scratch_bytes=metadata.global_scratch_size,
        profile_scratch_bytes=metadata.profile_scratch_size,
        registers=used.registers,
        spilled_bytes=used.spilled_bytes,
        dependent_launch=options.dependent_launch and machine.dependent_launch,
    )


def _first_line(error: BaseException) -> str:
    """What the innermost of chained errors says: those around it quote the callers."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip(" ^")]
    return lines[-1] if lines else type(error).__name__
