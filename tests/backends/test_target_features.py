"""Code asks for every feature that its compiler may use: a machine that lacks one refuses it before it runs."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from llamac.backends.cpu.toolchain import compiler_environment, cpu_flags, zig_command
from llamac.errors import LlamacError
from llamac.host import cpu_features
from llamac.runtime.host_cpu import HostCpu, pick_target
from llamac.runtime.run_plan import CodeTarget
from llamac.target import TARGETS, Target

FLAGS_OF = {
    "__AVX__": "avx", "__AVX2__": "avx2", "__BMI__": "bmi1", "__BMI2__": "bmi2", "__F16C__": "f16c", "__FMA__": "fma",
    "__LZCNT__": "abm", "__MOVBE__": "movbe", "__POPCNT__": "popcnt", "__GFNI__": "gfni", "__SSE4A__": "sse4a",
    "__AVX512F__": "avx512f", "__AVX512BW__": "avx512bw", "__AVX512CD__": "avx512cd", "__AVX512DQ__": "avx512dq",
    "__AVX512VL__": "avx512vl", "__AVX512VNNI__": "avx512_vnni", "__AVX512BF16__": "avx512_bf16",
    "__AVX512VBMI__": "avx512vbmi", "__AVX512VBMI2__": "avx512_vbmi2", "__AVX512IFMA__": "avx512ifma",
    "__AVX512BITALG__": "avx512_bitalg", "__AVX512VPOPCNTDQ__": "avx512_vpopcntdq", "__AVX512FP16__": "avx512_fp16",
    "__AVXVNNI__": "avx_vnni", "__AVXIFMA__": "avx_ifma", "__AVXNECONVERT__": "avx_ne_convert",
    "__AVXVNNIINT8__": "avx_vnni_int8", "__AMX_TILE__": "amx_tile", "__AMX_INT8__": "amx_int8",
    "__AMX_BF16__": "amx_bf16", "__FMA4__": "fma4", "__XOP__": "xop", "__TBM__": "tbm",
    "__ARM_NEON": "asimd", "__ARM_FEATURE_DOTPROD": "asimddp", "__ARM_FEATURE_MATMUL_INT8": "i8mm",
    "__ARM_FEATURE_BF16_VECTOR_ARITHMETIC": "bf16", "__ARM_FEATURE_SVE": "sve",
    "__ARM_FEATURE_FP16_VECTOR_ARITHMETIC": "asimdhp",
}  # fmt: skip
"""What the compiler defines for a feature that it may use unasked, or that kernels test -> its name in /proc/cpuinfo.

Features of special instructions alone (AES, SHA, CLZERO ...) are used by nothing but calls of them, and we have none.
"""


def _used(target: Target) -> set[str]:
    """The features that code for `target` may contain."""
    flags = ["-target", target.triple, *cpu_flags(target.cpu)]
    command = [*zig_command(), "cc", *flags, "-E", "-dM", "-x", "c", "/dev/null"]
    text = subprocess.run(command, env=compiler_environment(), check=True, capture_output=True, text=True).stdout
    defined = {line.split()[1] for line in text.splitlines()}
    return {flag for macro, flag in FLAGS_OF.items() if macro in defined}


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_requires_what_its_compiler_uses(name: str) -> None:
    used = _used(TARGETS[name])
    assert used, "none of the macros is defined: the table is out of date"
    assert used <= set(TARGETS[name].requires), f"{name} may use what it does not ask for"


@pytest.mark.parametrize(("name", "absent"), [(t.name, flag) for t in TARGETS.values() for flag in t.requires])
def test_a_machine_without_a_required_feature_is_refused(name: str, absent: str, tmp_path: Path) -> None:
    """With a /proc/cpuinfo that lacks one flag, which is what the kernel shows when a hypervisor masks it."""
    target = TARGETS[name]
    architecture = target.triple.split("-")[0]
    key = "Features" if architecture == "aarch64" else "flags"
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor : 0\n{key} : fpu {' '.join(f for f in target.requires if f != absent)}\n")
    host = HostCpu(architecture, "linux", cpu_features(architecture, cpuinfo))
    code = CodeTarget(name, "cpu", target.triple, target.requires, f"code/{name}.so", target.layout)
    with pytest.raises(LlamacError, match=f"LLC0800.*{name} needs {absent}$|LLC0800.*{name} needs {absent}\\b"):
        pick_target([code], host)
    cpuinfo.write_text(f"processor : 0\n{key} : fpu {' '.join(target.requires)}\n")
    assert pick_target([code], HostCpu(architecture, "linux", cpu_features(architecture, cpuinfo))) is code
