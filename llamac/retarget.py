"""retarget(): code for more machines in an artifact that is there, from its own IR; or for fewer.

Weights of a layout that stays are copied as they lie, with their hashes. A layout that is new is packed from the one
that is there, where it holds the very same numbers.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llamac.analysis.weight_plan import bytes_per_token
from llamac.artifact.launch_plan_file import read_plan
from llamac.artifact.read import Artifact
from llamac.artifact.write import ArtifactWriter
from llamac.backends.cpu.toolchain import zig_command
from llamac.backends.gpu.build import Made, made_kernels
from llamac.backends.gpu.toolchain import require_triton
from llamac.errors import LlamacError, did_you_mean
from llamac.ir.printer import print_module
from llamac.materialize import write_weights
from llamac.target import SIDE_OF_KIND, Target

from .assemble import Progress, compile_code, source_of
from .certificate import ONNX, recertify
from .chosen_targets import resolve_targets
from .compiled_graph import CompiledGraph
from .driver import CompileResult
from .gpu_side import arena_on, gpu_side, members
from .manifest_entries import (
    GPU_IMAGE_IR_MEMBER,
    GPU_IR_MEMBER,
    IMAGE_IR_MEMBER,
    IR_MEMBER,
    pass_entry,
    producer,
    target_entry,
    weights_entry,
)
from .repack import StoredWeights
from .retarget_guests import GUESTS, Guests, check_guests, onnx_weights, without
from .stored_graphs import ALIGNMENTS, LAYOUTS, StoredGraphs, ranks_in

SIDES = ("cpu", "gpu")
ORDER = ("cpu", *GUESTS, "gpu")
"""Sides in the order in which the manifest lists their targets."""


def retarget(
    artifact: str | Path,
    targets: str | Sequence[str] = (),
    *,
    remove: Sequence[str] = (),
    output: str | Path | None = None,
    memory: int = 1 << 30,
    progress: Progress = lambda stage, done, total: None,
) -> CompileResult:
    """Add or replace the code of `targets` in `artifact`, take that of `remove` out, and write `output`.

    output: the artifact itself unless given. memory: bound on temporary arrays while weights are packed anew, in bytes.
    The file appears complete or not at all, and is what `compile` makes for these targets, as far as no weight was
    packed anew: that is in the ledger. Every failure is a `LlamacError`: LLC0613 for targets that cannot be removed,
    LLC0614 for a file whose IR is not there or is not this llamac's, LLC0615 for weights that cannot be had exactly.
    """
    with Artifact.open(artifact) as source:
        stored = StoredGraphs(source)
        change = changes(source, targets, remove)
        work = _prepared(stored, change, progress)
        path = Path(output if output is not None else artifact)
        return _write(work, path, memory, progress)


@dataclass(frozen=True)
class Change:
    """made: targets that get new code. rows: what the manifest lists in the end, None for those that are `made`."""

    made: tuple[Target, ...]
    rows: Mapping[str, dict[str, Any] | None]

    def made_on(self, side: str) -> list[Target]:
        """The targets of a side that get new code."""
        return [t for t in self.made if side_of(t.kind) == side]

    def kept_on(self, side: str) -> list[dict[str, Any]]:
        """The rows of a side whose code stays."""
        return [row for row in self.rows.values() if row is not None and side_of(row["kind"]) == side]

    @property
    def guests(self) -> Guests:
        """The part of other systems."""
        return Guests(self.rows, tuple(t for t in self.made if side_of(t.kind) in GUESTS))


def side_of(kind: str) -> str:
    """The side of an artifact that a kind of target is on; the kind itself where this llamac does not know it."""
    return SIDE_OF_KIND.get(kind, kind)


def changes(source: Artifact, targets: str | Sequence[str], remove: Sequence[str]) -> Change:
    """What to do, in the order of `compile`: CPUs, then GPUs, each kind in the order of the file (LLC0603, LLC0613)."""
    names = [targets] if isinstance(targets, str) else list(targets)
    made = resolve_targets(names) if names else []
    _check_division(made, ranks_in(source.manifest))
    there = {row["name"]: row for row in source.manifest["targets"]}
    for name, kind in [*((t.name, t.kind) for t in made), *((name, row["kind"]) for name, row in there.items())]:
        if side_of(kind) not in ORDER:
            reason = f"code of the kind {kind} is made from a checkpoint only"
            raise LlamacError("LLC0614", name, reason, "compile the checkpoint with all targets")
    for name in remove:
        if name not in there:
            reason = f"the file has no code for it{did_you_mean(name, there)}"
            raise LlamacError("LLC0613", name, reason, f"it has {', '.join(there)}")
    rows: dict[str, dict[str, Any] | None] = {n: row for n, row in there.items() if n not in remove}
    rows |= {t.name: None for t in made}
    if not rows:
        raise LlamacError("LLC0613", str(source.path), "no code would be left", "name a target to keep, or to add")
    if not made and not remove:
        raise LlamacError(
            "LLC0603", "--target", "no target is named", "--target sm_86 adds code, --remove takes it out"
        )
    kinds = {t.name: t.kind for t in made}
    order = {side: number for number, side in enumerate(ORDER)}
    check_guests(source, made, [side_of(kinds[n] if n in kinds else there[n]["kind"]) for n in rows])
    ranked = sorted(rows, key=lambda n: order.get(side_of(kinds[n] if n in kinds else there[n]["kind"]), len(order)))
    return Change(tuple(made), {name: rows[name] for name in ranked})


def _check_division(made: Sequence[Target], ranks: int) -> None:
    """LLC0617 for a target that would divide the model otherwise than the file does."""
    for target in made:
        if target.ranks != ranks:
            counts = (target.ranks, ranks)
            ways = [f"divides the model among {n} processes" if n > 1 else "keeps it whole" for n in counts]
            reason = f"it {ways[0]}, and the file {ways[1]}: their weights lie differently"
            raise LlamacError("LLC0617", target.name, reason, "compile the checkpoint for it, into a file of its own")


@dataclass
class Side:
    """One side as it will be: its graph where code is made from it, and its weights where they are packed anew."""

    name: str
    compiled: CompiledGraph | None = None
    held: StoredWeights | None = None
    code: dict[str, bytes] = field(default_factory=dict)
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass
class Work:
    """Everything that the new file is made of."""

    stored: StoredGraphs
    change: Change
    sides: dict[str, Side]
    guests: Guests
    certificate: dict[str, Any] | None = None


def _prepared(stored: StoredGraphs, change: Change, progress: Progress) -> Work:
    """Graphs, code and certificate, before a byte is written; packing weights comes with the writing."""
    work = Work(stored, change, {}, change.guests)
    for name in SIDES:
        is_shared = name == "cpu" and work.guests.has_tvm
        made: list[Any] = [*change.made_on(name), *(work.guests.made if is_shared else ())]
        if made or change.kept_on(name) or is_shared:
            side = work.sides[name] = Side(name)
            if stored.has(name):
                side.compiled = stored.graph(name) if made else None
            else:
                side.compiled, side.held = stored.other_graph(name)
    _compile_cpu(work, progress)
    _compile_gpu(work, progress)
    if work.guests.made:
        compiled = work.sides["cpu"].compiled
        assert compiled is not None
        work.guests.build(compiled, stored.manifest)
    certificate = stored.manifest.get("certificate")
    kinds = [*work.sides, *([ONNX] if work.guests.has_onnx else [])]
    if certificate is not None and certificate.get("kinds", ["cpu"]) != kinds:
        certificate = recertify(certificate, kinds)
    work.certificate = certificate
    return work


def _compile_cpu(work: Work, progress: Progress) -> None:
    side, made = work.sides.get("cpu"), work.change.made_on("cpu")
    if side is None or side.compiled is None or not made:
        return
    zig_command()
    source = source_of(side.compiled, work.stored.manifest["model"]["name"])
    for row in work.change.kept_on("cpu"):
        if row["source"] is None or work.stored.artifact.member_bytes(row["source"]) != source.encode():
            named = ",".join([row["name"], *(t.name for t in made)])
            reason = f"the code of {row['name']} was generated by another llamac, and would lie beside code of this one"
            raise LlamacError("LLC0614", row["name"], reason, f"make both anew: --target {named}")
    with tempfile.TemporaryDirectory(prefix="llamac-") as folder:
        for number, target in enumerate(made):
            progress("compiling code", number, len(made))
            side.code[f"code/{target.stem}.so"] = compile_code(source, target, Path(folder))
    side.code["code/model.c"] = source.encode()
    side.rows = {t.name: target_entry(t) for t in made}


def _compile_gpu(work: Work, progress: Progress) -> None:
    side, made = work.sides.get("gpu"), work.change.made_on("gpu")
    if side is None or side.compiled is None:
        return
    require_triton()
    found = gpu_side(side.compiled, made)
    built = found.build(lambda done, total: progress("compiling code", done, total), _made(work))
    side.code = members(built)
    side.rows = {row["name"]: row for row in found.entries()}


def _plans(row: Mapping[str, Any]) -> list[str]:
    """The members with the launch plans of a GPU target, those of the ranks behind the first too."""
    return [name for name in (row["code"], row.get("fallback"), *row.get("others", ())) if name]


def _made(work: Work) -> Made:
    """The kernels of targets that stay, where this llamac would compile the same ones."""
    stored = work.stored
    compilers = producer(cpu=False, gpu=True).partition("(")
    there = stored.manifest["producer"]
    if not (there.startswith(compilers[0]) and compilers[2].rstrip(")") in there):
        return {}
    read, found = stored.artifact.member_bytes, {}
    for row in work.change.kept_on("gpu"):
        for member in _plans(row):
            found.update(made_kernels(read_plan(read(member), member), read))
    return found


def _write(work: Work, path: Path, memory: int, progress: Progress) -> CompileResult:
    source, manifest = work.stored.artifact, _manifest(work)
    sizes = {row["layout"]: row["bytes"] for row in manifest["weights"]}
    with ArtifactWriter(path, expected_bytes=sum(sizes.values())) as writer:
        _write_weights(work, writer, memory, sum(sizes.values()), progress)
        work.guests.write_onnx(writer, source)
        for name, data in _code(work).items():
            if data is None:
                writer.copy_member(source, name)
            else:
                writer.add_bytes(name, data)
        work.guests.write_code(writer, source)
        _write_ir(work, writer)
        for name in [*_files(manifest), *([manifest["chat_template"]] if manifest["chat_template"] else [])]:
            writer.copy_member(source, name)
        return CompileResult(path, writer.finish(manifest), manifest)


def _files(manifest: Mapping[str, Any]) -> list[str]:
    tokenizer = manifest["tokenizer"]
    return [] if tokenizer is None else [tokenizer["files"][name] for name in sorted(tokenizer["files"])]


def _write_weights(work: Work, writer: ArtifactWriter, memory: int, total: int, progress: Progress) -> None:
    done = 0

    def advance(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        progress("weights", min(done, total), total)

    for name, side in work.sides.items():
        if side.held is None:
            for row in work.stored.all_weights(name):
                writer.copy_member(work.stored.artifact, row["member"], progress=advance)
            continue
        assert side.compiled is not None
        with writer.open_stream(f"weights/{LAYOUTS[name]}.bin", side.compiled.limits.weight_bytes) as stream:
            write_weights(side.compiled.placed, side.held, stream, memory // 4, advance)
            stream.pad_to(ALIGNMENTS[name])


def _code(work: Work) -> dict[str, bytes | None]:
    """The members of code in the order that `compile` gives them; None for what is copied."""
    rows, artifact = _rows(work), work.stored.artifact
    cpu, gpu = ([row for row in rows if side_of(row["kind"]) == side] for side in SIDES)
    order = [*(r["code"] for r in cpu), *(r["source"] for r in cpu if r["source"])]
    order += [name for row in gpu for name in _plans(row)]
    made = {name: data for side in work.sides.values() for name, data in side.code.items()}
    kernels = {name for name in made if name not in order}
    for row in work.change.kept_on("gpu"):
        for member in _plans(row):
            kernels |= {kernel.member for kernel in read_plan(artifact.member_bytes(member), member).kernels}
    for name in kernels & made.keys() & set(artifact.members):
        if artifact.member_bytes(name) != made[name]:
            reason = "another llamac or Triton compiled this kernel for a target that stays"
            names = ",".join(r["name"] for r in gpu)
            raise LlamacError("LLC0614", name, reason, f"make all of them anew: --target {names}")
    return {name: made.get(name) for name in [*order, *sorted(kernels)]}


def _rows(work: Work) -> list[dict[str, Any]]:
    """The targets as the manifest will list them."""
    made = {name: row for side in work.sides.values() for name, row in side.rows.items()} | work.guests.entries
    return [made[name] if row is None else row for name, row in work.change.rows.items()]


def _write_ir(work: Work, writer: ArtifactWriter) -> None:
    for number, (name, side) in enumerate(work.sides.items()):
        member = (IR_MEMBER, GPU_IR_MEMBER)[number]
        if side.held is None:
            writer.copy_member(work.stored.artifact, work.stored.ir_member(name), member)
        else:
            assert side.compiled is not None
            writer.add_bytes(member, print_module(side.compiled.module).encode())
    for number, image in enumerate(map(work.stored.image, work.sides)):
        if image is not None:
            writer.copy_member(work.stored.artifact, image["ir"], (IMAGE_IR_MEMBER, GPU_IMAGE_IR_MEMBER)[number])


def _manifest(work: Work) -> dict[str, Any]:
    """The manifest of the old file with what differs in the new one."""
    stored, sides = work.stored, work.sides
    passes = {name: _passes(stored, side) for name, side in sides.items()}
    memory = {name: _memory(work, side) for name, side in sides.items()}
    main, *second = sides
    guests, dropped = work.guests, {"members", "gpu", "image", *([] if work.guests.has_onnx else ["onnx"])}
    manifest = {key: value for key, value in stored.manifest.items() if key not in dropped}
    manifest["producer"] = producer("cpu" in sides, "gpu" in sides, guests.has_tvm, guests.has_onnx)
    manifest["targets"] = _rows(work)
    manifest["weights"] = [row for side in sides.values() for row in _weights_rows(stored, side)]
    manifest["weights"] += [onnx_weights(stored.manifest)] if guests.has_onnx else []
    manifest["ir"], manifest["passes"] = IR_MEMBER, passes[main]
    manifest["memory"] = {**stored.manifest["memory"], **memory[main]}
    for name in second:
        manifest["gpu"] = {"ir": GPU_IR_MEMBER, "passes": passes[name], "memory": memory[name]}
        if (image := stored.image(name)) is not None:
            manifest["gpu"]["image"] = {"ir": GPU_IMAGE_IR_MEMBER, "passes": image["passes"]}
    if (image := stored.image(main)) is not None:
        manifest["image"] = {**image, "ir": IMAGE_IR_MEMBER}
    if "certificate" in stored.manifest:
        manifest["certificate"] = work.certificate
    names = {row["name"] for row in manifest["targets"]}
    gone = [row for row in stored.manifest["targets"] if row["name"] not in names]
    members = {row["member"] for row in manifest["weights"]}
    said = without(_ledger(work), gone)
    manifest["ledger"] = [e for e in said if e["kind"] != "repacked" or e["where"] in members]
    return manifest


def _ledger(work: Work) -> list[dict[str, Any]]:
    """What the file says was decided, with what every graph adds that was packed anew or made other code of."""
    sides = [s for s in work.sides.values() if s.held is not None or work.guests.made]
    ledgers = [[e.to_json() for e in s.compiled.context.ledger] for s in sides if s.compiled is not None]
    found = ledgers[0] if ledgers else list(work.stored.manifest["ledger"])
    for ledger in ledgers[1:]:
        found += [entry for entry in ledger if entry not in found]
    return found


def _passes(stored: StoredGraphs, side: Side) -> list[dict[str, Any]]:
    if side.held is None:
        return stored.passes(side.name)
    assert side.compiled is not None
    return [pass_entry(record) for record in side.compiled.records]


def _weights_rows(stored: StoredGraphs, side: Side) -> list[dict[str, Any]]:
    if side.held is None:
        return stored.all_weights(side.name)
    assert side.compiled is not None
    return [weights_entry(f"weights/{LAYOUTS[side.name]}.bin", side.compiled)]


def _memory(work: Work, side: Side) -> dict[str, int]:
    """As `compile` counts it: the arena of GPUs is that of the first target."""
    stored = work.stored
    found = stored.memory(side.name) if side.held is None else _counted(side)
    if side.name == "gpu":
        first = next(row["name"] for row in _rows(work) if side_of(row["kind"]) == "gpu")
        before = [row["name"] for row in stored.manifest["targets"] if side_of(row["kind"]) == "gpu"]
        if side.held is not None or before[0] != first:
            found["arena_bytes"] = arena_on(side.compiled or stored.graph("gpu"), first)
    return found


def _counted(side: Side) -> dict[str, int]:
    compiled = side.compiled
    assert compiled is not None
    limits = compiled.limits
    token = bytes_per_token(compiled.module, compiled.placed)
    return {
        "arena_bytes": limits.arena_bytes,
        "weight_bytes": limits.weight_bytes,
        "weight_bytes_per_token": token,
    }
