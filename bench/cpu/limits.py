"""The limits of this machine, measured: peaks of its arithmetic units on all threads, and its plain read of memory.

python bench/cpu/limits.py --threads 2
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import json
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from _machine import machine, machine_line

from llamac.artifact.read import Artifact
from llamac.backends.cpu.toolchain import compile_shared_library
from llamac.driver import resolve_targets
from llamac.runtime.read_bandwidth import ReadBandwidth

KINDS = ("f32", "int8", "bf16")
ROUNDS = 4_000_000


@functools.cache
def _library() -> ctypes.CDLL:
    (target,) = resolve_targets(["cpu"])
    source = (Path(__file__).parent / "limits.c").read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory(prefix="llamac-limits-") as folder:
        out = Path(folder) / "limits.so"
        compile_shared_library({"limits.c": source}, triple=target.triple, cpu=target.cpu, out=out)
        library = ctypes.CDLL(str(out))
    library.peak.restype = ctypes.c_double
    library.peak.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_uint64]
    library.read_rate.restype = ctypes.c_double
    library.read_rate.argtypes = [ctypes.c_void_p, ctypes.c_uint64, ctypes.c_int]
    return library


def peak(kind: str, threads: int) -> float:
    """Operations a second (a multiplication and an addition are two) of the unit for `kind`; 0 where there is none."""
    return float(_library().peak(KINDS.index(kind), threads, ROUNDS))


class MappedRead:
    """A plain read of the weights of an artifact where they lie: in a map of the file, as the generated code has them.

    Pages of a file are small, so this can be slower than the read of `ReadBandwidth`, whose memory has huge pages.
    """

    def __init__(self, path: Path, threads: int) -> None:
        self._artifact = Artifact.open(path)
        layouts = self._artifact.manifest["weights"]
        self._maps = [np.asarray(self._artifact.map(entry["member"])) for entry in layouts]
        self._threads = threads
        self.measure()

    def measure(self) -> float:
        """Read all of it once; bytes a second."""
        rates = [
            (mapped.nbytes, _library().read_rate(mapped.ctypes.data, mapped.nbytes, self._threads))
            for mapped in self._maps
        ]
        return float(sum(size for size, _ in rates) / sum(size / rate for size, rate in rates))

    def close(self) -> None:
        """Give the map back."""
        self._maps.clear()
        self._artifact.close()


def main() -> None:
    """Print the limits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    words = parser.parse_args()
    found = {k: statistics.median(peak(k, words.threads) for _ in range(words.repeats)) for k in KINDS}
    bandwidth = ReadBandwidth(words.threads)
    read = statistics.median(bandwidth.measure() for _ in range(words.repeats))
    if words.json:
        print(json.dumps({**machine(), "threads": words.threads, "peaks": found, "read_bytes_per_second": read}))
        return
    print(machine_line())
    for kind, rate in found.items():
        print(f"{kind:5s} {rate / 1e9:8.1f} G operations/s" if rate else f"{kind:5s} no unit")
    print(f"read  {read / 1e9:8.1f} GB/s")


if __name__ == "__main__":
    main()
