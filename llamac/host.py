"""What this machine is: its architecture and its CPU's feature flags, by the names of `/proc/cpuinfo`."""

from __future__ import annotations

import ctypes
import platform
import sys
from pathlib import Path

_ARCHITECTURES = {"amd64": "x86_64", "x64": "x86_64", "arm64": "aarch64"}
"""Other names of the same machine -> the name used in target triples."""

_ARM_HWCAP = (
    "fp", "asimd", "evtstrm", "aes", "pmull", "sha1", "sha2", "crc32", "atomics", "fphp", "asimdhp", "cpuid",
    "asimdrdm", "jscvt", "fcma", "lrcpc", "dcpop", "sha3", "sm3", "sm4", "asimddp", "sha512", "sve", "asimdfhm",
    "dit", "uscat", "ilrcpc", "flagm", "ssbs", "sb", "paca", "pacg",
)  # fmt: skip
_ARM_HWCAP2 = (
    "dcpodp", "sve2", "sveaes", "svepmull", "svebitperm", "svesha3", "svesm4", "flagm2", "frint", "svei8mm",
    "svef32mm", "svef64mm", "svebf16", "i8mm", "bf16", "dgh", "rng", "bti", "mte",
)  # fmt: skip
"""Bit i of AT_HWCAP / AT_HWCAP2 on aarch64 Linux (arch/arm64/include/uapi/asm/hwcap.h), by its cpuinfo name."""

_AT_HWCAP, _AT_HWCAP2 = 16, 26


def machine_architecture() -> str:
    """`x86_64` or `aarch64`, as target triples spell it."""
    machine = platform.machine().lower()
    return _ARCHITECTURES.get(machine, machine)


def cpu_features(architecture: str, cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """The CPU's feature flags; empty when they cannot be known."""
    wanted = "Features" if architecture == "aarch64" else "flags"
    try:
        with cpuinfo.open(encoding="ascii", errors="replace") as lines:
            for line in lines:
                key, _, value = line.partition(":")
                if key.strip() == wanted:
                    return frozenset(value.split())
    except OSError:
        pass
    # Under qemu-user /proc/cpuinfo describes the machine outside; the auxiliary vector is the emulated one.
    return _arm_auxiliary_features() if architecture == "aarch64" and sys.platform == "linux" else frozenset()


def _arm_auxiliary_features() -> frozenset[str]:
    getauxval = ctypes.CDLL(None).getauxval
    getauxval.restype = ctypes.c_ulong
    getauxval.argtypes = [ctypes.c_ulong]
    rows = ((getauxval(_AT_HWCAP), _ARM_HWCAP), (getauxval(_AT_HWCAP2), _ARM_HWCAP2))
    return frozenset(name for bits, names in rows for bit, name in enumerate(names) if bits >> bit & 1)
