"""The toy model for GPUs: a launch plan of four small kernels, their real code, and numpy in the GPU's place.

It computes what tests/toy/toy.c does, out of the stub driver's memory: whatever the runtime puts in the wrong place, or
passes in the wrong parameter, shows in the logits.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from gpu_stub_library import Stub

from llamac.artifact.launch_plan import (
    LISTED,
    SAMPLED_WORDS,
    SAMPLING_WORDS,
    Bucket,
    Buffer,
    Expression,
    Kernel,
    KernelParameter,
    Launch,
    LaunchPlan,
    Pointer,
)
from llamac.artifact.launch_plan_file import write_plan
from llamac.artifact.write import ArtifactWriter
from llamac.runtime.sampler import SamplerOptions, candidates, log_normalizer

VOCAB, PAGE_TOKENS, PAGE_BYTES, WEIGHT_BYTES = 260, 4, 64, 4096
TILE = 4
KERNELS = {
    "remember": (6, 2),
    "see_tiles": (2, 1),
    "answer": (7, 2),
    "best": (2, 0),
    "draw": (4, 0),
}
"""Kernel -> how many pointers and how many integers it takes."""

LASTS = {"greedy": "best", "sample": "draw"}
"""Result -> the kernel that finds it in the logits."""

TYPES = {"logits_ptr": "*fp32", "weights_ptr": "*u8"}
PLACES = {
    "token_ids_ptr": "token_ids", "positions_ptr": "positions", "owners_ptr": "sequence_of_token",
    "tables_ptr": "page_tables", "cache_ptr": "cache", "counter_ptr": "counters", "tiles_ptr": "attention_tiles",
    "scratch_ptr": "arena", "rows_ptr": "logit_rows", "weights_ptr": "weights", "logits_ptr": "logits",
    "best_ptr": "best", "sampling_ptr": "sampling", "chosen_ptr": "chosen", "sampled_ptr": "sampled",
}  # fmt: skip


@functools.cache
def compiled(name: str, architecture: str) -> Any:
    """A kernel of `toy_gpu_kernels`, compiled by Triton."""
    import toy_gpu_kernels

    from llamac.backends.gpu.compile import compile_kernel
    from llamac.backends.gpu.request import CompileOptions

    kernel = getattr(toy_gpu_kernels, name)
    signature = {p: TYPES.get(p, "*i32") if p.endswith("_ptr") else "i32" for p in kernel.arg_names}
    return compile_kernel(
        kernel, signature, {}, architecture, CompileOptions(1, 1, dependent_launch=name != "remember")
    )


def member_of(name: str, architecture: str, code: str) -> str:
    return f"gpu/{architecture}/{name}.{code}"


def toy_plan(architecture: str, code: str, target: str = "toy") -> LaunchPlan:
    """Buckets: decode of 1 and of 4 tokens, prefill of up to 8 tokens of which 2 give logits at a time."""
    names = list(KERNELS)
    kernels = tuple(_kernel(name, architecture, code) for name in names)

    def launch(name: str, blocks: Expression) -> Launch:
        kernel = kernels[names.index(name)]
        arguments = tuple(Pointer(PLACES[p.name], 0) if p.is_pointer else p.name for p in kernel.parameters)
        return Launch(names.index(name), (blocks, 1, 1), arguments, f"layers.0.{name}")

    tails = {"logits": (launch("answer", "rows"),)}
    tails |= {name: (launch("answer", "rows"), launch(last, "rows")) for name, last in LASTS.items()}
    plain = (launch("remember", "tokens"),)
    tiles: Expression = ("add", ("ceil_div", "tokens", TILE), "sequences")
    buckets = (
        Bucket("decode-1", "decode", 1, 1, plain, tails),
        Bucket("decode-4", "decode", 4, 4, plain, tails),
        Bucket("prefill-8", "prefill", 8, 2, (*plain, launch("see_tiles", tiles)), tails),
    )
    kind = "cuda" if architecture.startswith("sm_") else "hip"
    toolkit = {"cubin": "13.0", "ptx": "13.4", "hsaco": ""}[code]
    return LaunchPlan(
        target, kind, architecture, code, 32 if kind == "cuda" else 64, toolkit, VOCAB, PAGE_TOKENS,
        _buffers(tiles), kernels, buckets,
    )  # fmt: skip


def _kernel(name: str, architecture: str, code: str) -> Kernel:
    made = compiled(name, architecture)
    parameters = tuple(KernelParameter(p.name, p.type) for p in made.parameters)
    return Kernel(
        made.name, member_of(name, architecture, code), name, parameters, {}, made.warps, made.shared_bytes,
        dependent_launch=made.dependent_launch,
    )  # fmt: skip


def _buffers(tiles: Expression) -> tuple[Buffer, ...]:
    def i32(name: str, count: Expression, **more: Any) -> Buffer:
        return Buffer(name, "input", ("mul", 4, count), "i32", **more)

    return (
        Buffer("weights", "weights", WEIGHT_BYTES, member="weights/gpu.bin"),
        Buffer("arena", "scratch", ("mul", "tokens", 128)),
        Buffer("counters", "counters", 64),
        Buffer("cache", "cache", ("mul", ("add", "pages.cache", 1), PAGE_BYTES), page_bytes=PAGE_BYTES),
        i32("token_ids", "tokens"),
        i32("positions", "tokens"),
        i32("sequence_of_token", "tokens"),
        i32("page_tables", ("mul", "sequences", "table_width")),
        i32("logit_rows", "rows"),
        i32("attention_tiles", ("mul", 2, tiles), tile_tokens=TILE),
        i32("sampling", ("mul", SAMPLING_WORDS, "rows")),
        Buffer("logits", "output", ("mul", "rows", 4 * VOCAB), "f32"),
        Buffer("best", "output", ("mul", "rows", 4), "i32"),
        Buffer("chosen", "output", ("mul", "rows", 4), "i32"),
        Buffer("sampled", "output", ("mul", "rows", 4 * SAMPLED_WORDS), "i32"),
    )


def code_members(architecture: str, code: str) -> dict[str, bytes]:
    """Member -> its bytes, the plan not among them."""
    made = {name: compiled(name, architecture) for name in KERNELS}
    return {
        member_of(name, architecture, code): one.assembly.encode() if code == "ptx" else one.code
        for name, one in made.items()
    }


def gpu_target(name: str, architecture: str, fallback: bool = False) -> dict[str, Any]:
    kind = "cuda" if architecture.startswith("sm_") else "hip"
    return {
        "name": name,
        "kind": kind,
        "triple": f"{kind}-{architecture}",
        "requires": [architecture],
        "code": f"gpu/{name}.json",
        "fallback": f"gpu/{name}-ptx.json" if fallback else None,
        "source": None,
        "layout": "gpu-rows16",
        "truth": "compiled",
    }


def unchanged(plan: LaunchPlan) -> LaunchPlan:
    return plan


def unedited(manifest: dict[str, Any]) -> None:
    pass


class ToyGpuArtifacts:
    """Writes toy artifacts that hold code for GPUs, beside that for the CPU or instead of it."""

    def __init__(self, folder: Path, manifest: Callable[[], dict[str, Any]], cpu_code: bytes, tokenizer: bytes) -> None:
        self.folder, self.manifest, self.cpu_code, self.tokenizer = folder, manifest, cpu_code, tokenizer
        self.count = 0
        self._made: dict[tuple[str, ...], Path] = {}

    def make(
        self,
        *architectures: str,
        fallback: bool = False,
        cpu: bool = False,
        change: Callable[[LaunchPlan], LaunchPlan] = unchanged,
        edit: Callable[[dict[str, Any]], None] = unedited,
    ) -> Path:
        """fallback: with PTX for sm_80. change: of each plan before it is written. Plain ones are made once."""
        if change is not unchanged or edit is not unedited:
            return self._new(architectures, fallback, cpu, change, edit)
        key = (*architectures, str(fallback), str(cpu))
        if key not in self._made:
            self._made[key] = self._new(architectures, fallback, cpu, change, edit)
        return self._made[key]

    def _new(
        self,
        architectures: tuple[str, ...],
        fallback: bool,
        cpu: bool,
        change: Callable[[LaunchPlan], LaunchPlan],
        edit: Callable[[dict[str, Any]], None],
    ) -> Path:
        manifest = self.manifest()
        targets = [gpu_target(f"toy-{name}", name, fallback and name.startswith("sm_")) for name in architectures]
        members: dict[str, bytes] = {}
        for target, architecture in zip(targets, architectures, strict=True):
            code = "cubin" if target["kind"] == "cuda" else "hsaco"
            members |= code_members(architecture, code)
            members[target["code"]] = write_plan(change(toy_plan(architecture, code, target["name"])))
            if target["fallback"]:
                members |= code_members("sm_80", "ptx")
                members[target["fallback"]] = write_plan(change(toy_plan("sm_80", "ptx", target["name"])))
        own = manifest["targets"] if cpu else []
        manifest["targets"] = [*targets, *own]
        layout = {"layout": "gpu-rows16", "member": "weights/gpu.bin", "bytes": WEIGHT_BYTES, "tensors": []}
        manifest["weights"] = [layout, *(manifest["weights"] if cpu else [])]
        edit(manifest)
        return self._write(manifest, members, cpu)

    def _write(self, manifest: dict[str, Any], members: dict[str, bytes], cpu: bool) -> Path:
        self.count += 1
        path = self.folder / f"toy-gpu-{self.count}.llamac"
        with ArtifactWriter(path) as writer:
            if cpu:
                writer.add_bytes("code/host.so", self.cpu_code)
            for name, data in members.items():
                writer.add_bytes(name, data)
            writer.add_bytes("tokenizer/tokenizer.json", self.tokenizer)
            writer.add_bytes("tokenizer/chat_template.jinja", b"{{ messages[0]['content'] }}")
            for row in manifest["weights"]:
                stream = writer.open_stream(row["member"], WEIGHT_BYTES)
                stream.write(bytes([7]) + bytes(WEIGHT_BYTES - 1))
            writer.finish(manifest)
        return path


class ToyGpu:
    """Runs the toy's launches in the stub's memory, when the stub says that their turn has come."""

    def __init__(self, stub: Stub) -> None:
        self.runs: list[str] = []
        self.failure: BaseException | None = None
        stub.on_launch(self._run)

    def _run(self, name: bytes, module: int, x: int, y: int, z: int, values: Any, count: int) -> None:
        try:
            kernel = name.decode()
            pointers, integers = KERNELS[kernel]
            assert count == pointers + integers + 2 and y == z == 1
            assert values[count - 2] == values[count - 1] == 0, "scratch pointers must be null"
            getattr(self, f"_{kernel}")(x, *values[: count - 2])
            self.runs.append(kernel)
        except BaseException as error:  # ctypes would only print it
            self.failure = self.failure or error

    def _remember(self, x: int, ids: int, positions: int, owners: int, tables: int, cache: int, counter: int,
                  tokens: int, width: int) -> None:  # fmt: skip
        assert x == tokens and int32s(counter, 1)[0] == 0
        rows = zip(*(int32s(each, tokens).tolist() for each in (ids, positions, owners)), strict=True)
        for token, position, owner in rows:
            page = int32s(tables + 4 * (owner * width + position // PAGE_TOKENS), 1).item()
            int32s(cache + PAGE_BYTES * page + 4 * (position % PAGE_TOKENS), 1)[0] = token

    def _see_tiles(self, x: int, tiles: int, scratch: int, tokens: int) -> None:
        rows = int32s(tiles, 2 * x).reshape(-1, 2)
        assert rows[:, 1].sum() == tokens and (rows[:, 1] <= TILE).all() and (rows[:, 1] >= 0).all()

    def _answer(self, x: int, rows: int, positions: int, owners: int, tables: int, cache: int, weights: int,
                logits: int, count: int, width: int) -> None:  # fmt: skip
        assert x == count and int32s(weights, 1)[0] == 7
        out = np.ctypeslib.as_array((ctypes.c_float * (count * VOCAB)).from_address(logits)).reshape(count, VOCAB)
        for place, row in enumerate(int32s(rows, count).tolist()):
            position = int32s(positions + 4 * row, 1).item()
            owner = int32s(owners + 4 * row, 1).item()
            history = 1
            for p in range(position + 1):
                page = int32s(tables + 4 * (owner * width + p // PAGE_TOKENS), 1).item()
                token = int32s(cache + PAGE_BYTES * page + 4 * (p % PAGE_TOKENS), 1).item()
                history = (history * 31 + token) % 65521
            out[place] = ((history + np.arange(VOCAB) * 17) % 97).astype(np.float32) / np.float32(97)
            out[place, (token + 1) % VOCAB] = 10

    def _best(self, x: int, logits: int, out: int) -> None:
        found = np.ctypeslib.as_array((ctypes.c_float * (x * VOCAB)).from_address(logits)).reshape(x, VOCAB)
        int32s(out, x)[:] = found.argmax(1)

    def _draw(self, x: int, logits: int, sampling: int, chosen: int, sampled: int) -> None:
        rows = np.ctypeslib.as_array((ctypes.c_float * (x * VOCAB)).from_address(logits)).reshape(x, VOCAB)
        options = int32s(sampling, x * SAMPLING_WORDS).reshape(x, SAMPLING_WORDS)
        found = np.zeros((x, SAMPLED_WORDS), np.int32)
        for row, words, out in zip(rows, options, found, strict=True):
            out[:] = drawn(row, words)
        int32s(chosen, x)[:] = np.maximum(found[:, 0], 0)
        int32s(sampled, found.size)[:] = found.reshape(-1)


def drawn(logits: np.ndarray[Any, np.dtype[np.float32]], words: np.ndarray[Any, np.dtype[np.int32]]) -> Any:
    """What a row of options asks for, as `kernels/sample.py` answers it; of numpy and the host's sampler."""
    floats, out = words.view(np.float32), np.zeros(SAMPLED_WORDS, np.int32)
    order = np.argsort(-logits, kind="stable")[:LISTED]
    normalizer, token = log_normalizer(logits), int(order[0])
    if floats[2] > 0:
        uniform = ((int(words[1]) & 0xFFFF_FFFF) << 21 | int(words[0])) * 2.0**-53
        given = SamplerOptions(float(floats[2]), int(words[3]), float(floats[4]), float(np.exp(floats[5])))
        ids, weights = candidates(logits, given)
        mass = np.cumsum(weights)
        token = int(ids[min(np.searchsorted(mass, uniform * mass[-1], side="right"), len(ids) - 1)])
    out[0] = token
    out[1:3] = np.array([logits[token] - normalizer, normalizer], np.float32).view(np.int32)
    out[4 : 4 + LISTED], out[4 + LISTED :] = order, logits[order].view(np.int32)
    return out


def int32s(address: int, count: int) -> np.ndarray[Any, np.dtype[np.int32]]:
    """Host memory as integers."""
    return np.ctypeslib.as_array((ctypes.c_int32 * int(count)).from_address(int(address)))
