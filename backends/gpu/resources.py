"""What a compiled kernel needs of the machine, read from the code itself: registers, spills, parameters."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from llamac.errors import LlamacError


@dataclass(frozen=True)
class Resources:
    """registers: 32-bit vector registers of a thread. spilled_bytes: bytes of a thread that lie in memory instead.

    parameter_bytes: the sizes of the parameters in the order of the code, the two trailing scratch pointers included.
    """

    registers: int
    spilled_bytes: int
    parameter_bytes: tuple[int, ...]


_USAGE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)")
_ENTRY = re.compile(r"\.visible \.entry \w+\((.*?)\)", re.DOTALL)
_PARAMETER = re.compile(r"\.param (?:\.align \d+ )?\.([a-z]+)(\d+)[^\n]*?(?:\[(\d+)\])?,?\n")


def cuda_resources(ptx: str, cubin: bytes, cuobjdump: str) -> Resources:
    """Registers and spills of a cubin as `cuobjdump` reports them, parameters from its PTX."""
    with tempfile.TemporaryDirectory(prefix="llamac-cubin-") as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        command = [cuobjdump, "--dump-resource-usage", str(path)]
        report = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    found = _USAGE.search(report)
    entry = _ENTRY.search(ptx)
    if found is None or entry is None:
        raise LlamacError("LLC0610", "cubin", "its resource usage cannot be read (a bug in llamac)")
    registers, stack, local = (int(number) for number in found.groups())
    sizes = [int(bits) // 8 * int(count or 1) for _, bits, count in _PARAMETER.findall(entry[1] + "\n")]
    return Resources(registers, stack + local, tuple(sizes))


def hip_resources(assembly: str) -> Resources:
    """Registers, spills and parameters from the metadata notes at the end of AMD assembly."""

    def number(key: str) -> int:
        found = re.search(rf"\.{key}:\s+(\d+)", assembly)
        if found is None:
            raise LlamacError("LLC0610", "hsaco", f"its metadata lacks {key} (a bug in llamac)")
        return int(found[1])

    arguments = assembly[assembly.index("amdhsa.kernels:") :].split(".group_segment_fixed_size")[0]
    sizes = [int(size) for size in re.findall(r"\.size:\s+(\d+)", arguments)]
    spilled = 4 * (number("vgpr_spill_count") + number("sgpr_spill_count"))
    return Resources(number("vgpr_count"), max(spilled, number("private_segment_fixed_size")), tuple(sizes))
