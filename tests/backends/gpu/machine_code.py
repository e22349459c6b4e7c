"""What the tests read in machine code: instructions, and the order they come in."""

from __future__ import annotations

import functools
import re
import subprocess
import tempfile
from pathlib import Path

from llamac.backends.gpu.compile import CompiledKernel

_INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]+)")


@functools.cache
def instructions(kernel: CompiledKernel) -> list[str]:
    """The instructions of a kernel in order, without operands: SASS of a cubin, mnemonics of AMD assembly."""
    if kernel.architecture.startswith("gfx"):
        body = kernel.assembly.split("s_endpgm")[0]
        return [line.split()[0] for line in body.splitlines() if line.startswith("\t") and line.strip()[:1].isalpha()]
    from triton import knobs

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(kernel.code)
        command = [knobs.nvidia.nvdisasm.path, "-c", str(path)]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return _INSTRUCTION.findall(text)


def ptxas_report(kernel: CompiledKernel) -> tuple[int, int]:
    """Registers and spilled bytes that ptxas itself reports for the PTX of a kernel."""
    from triton import knobs

    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(kernel.assembly)
        name = re.search(r"\.target (\w+)", kernel.assembly)
        assert name is not None
        command = [
            knobs.nvidia.ptxas.path,
            "-v",
            "--regAllocOptLevel=2",
            f"--gpu-name={name[1]}",
            str(source),
            "-o",
            "/dev/null",
        ]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    used, spilled = re.search(r"Used (\d+) registers", report), re.search(r"(\d+) bytes spill stores", report)
    assert used is not None and spilled is not None
    return int(used[1]), int(spilled[1])
