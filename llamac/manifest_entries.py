"""What the manifest of an artifact says of a compiled model."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from llamac.analysis.weight_plan import bytes_per_token
from llamac.artifact.tvm_plan import VERSIONS
from llamac.backends.cpu.toolchain import ZIG_VERSION
from llamac.backends.gpu.toolchain import TRITON_VERSION
from llamac.backends.onnx.graph_writer import OPSET
from llamac.ir.kv_groups import kv_groups
from llamac.ir.layouts import LAYOUT
from llamac.models.llama.config import LlamaConfig
from llamac.target import Target
from llamac.transform.pipeline import PassRecord

from .layer_kinds import cached_layers

if TYPE_CHECKING:
    from .assemble import Parts
    from .compiled_graph import CompiledGraph

WEIGHTS_MEMBER = f"weights/{LAYOUT}.bin"
IR_MEMBER = "ir/step.ir"
GPU_IR_MEMBER = "ir/step.gpu.ir"
IMAGE_IR_MEMBER = "ir/encode_image.ir"
GPU_IMAGE_IR_MEMBER = "ir/encode_image.gpu.ir"


def manifest_of(parts: Parts, text: dict[str, Any]) -> dict[str, Any]:
    """Everything that the manifest says but the hashes of the members, which the writer adds."""
    checkpoint, compiled = parts.checkpoint, parts.main
    config, generation = checkpoint.config, checkpoint.generation
    return {
        "format": "llamac-artifact",
        "schema": 1,
        "producer": producer(parts.runs_on_cpus, parts.gpu is not None, parts.tvm is not None, parts.onnx is not None),
        "model": {
            "name": checkpoint.name,
            "architecture": config.architecture,
            "source_format": checkpoint.format,
            "license": checkpoint.license,
            "parameters": config.parameters,
            "config": dataclasses.asdict(config),
            "context_length": compiled.limits.context,
            "vocab_size": config.vocab_size,
            "token_ids": checkpoint.tensors["embed"].shape[0],
        },
        "quantization": str(compiled.quantization),
        "passes": [pass_entry(r) for r in compiled.records],
        "targets": [*map(target_entry, parts.cpu_targets), *_other_targets(parts)],
        "weights": [*(weights_entry(member, graph) for member, graph in parts.weights()), *_onnx_weights(parts)],
        "ir": IR_MEMBER,
        **_gpu_entry(parts),
        **({"onnx": parts.onnx.manifest_entry()} if parts.onnx is not None else {}),
        **image_entry(compiled),
        "memory": _memory_entry(compiled, config),
        **text,
        "generation": {
            "bos_id": generation.bos_id,
            "add_bos": generation.add_bos,
            "stop_ids": list(generation.stop_ids),
            "stop_sources": {str(k): list(v) for k, v in generation.stop_sources.items()},
            "defaults": dict(generation.sampling),
        },
        "golden": parts.vectors,
        "certificate": parts.certificate,
        "ledger": [entry.to_json() for entry in compiled.context.ledger],
    }


def _other_targets(parts: Parts) -> list[dict[str, Any]]:
    return [entry for side in (parts.tvm, parts.onnx, parts.gpu) if side is not None for entry in side.entries()]


def _onnx_weights(parts: Parts) -> list[dict[str, Any]]:
    return [parts.onnx.weights_entry()] if parts.onnx is not None else []


def producer(cpu: bool, gpu: bool, tvm: bool = False, onnx: bool = False) -> str:
    """The name of this program, with the compilers that it uses for a file with code for CPUs, for GPUs or both."""
    sides = (
        (cpu, f"zig {ZIG_VERSION}"),
        (gpu, f"triton {TRITON_VERSION}"),
        (tvm, f"tvm {VERSIONS['apache-tvm']}"),
        (onnx, f"onnx opset {OPSET}"),
    )
    named = [text for wanted, text in sides if wanted]
    return f"llamac {_version()} ({', '.join(named)})"


def _gpu_entry(parts: Parts) -> dict[str, Any]:
    """What differs on GPUs, where the file has code for CPUs too."""
    if parts.cpu is None or parts.gpu is None:
        return {}
    compiled = parts.gpu.compiled
    memory = {
        "arena_bytes": parts.gpu.arena_bytes,
        "weight_bytes": compiled.limits.weight_bytes,
        "weight_bytes_per_token": bytes_per_token(compiled.module, compiled.placed),
    }
    entry = {"ir": GPU_IR_MEMBER, "passes": [pass_entry(r) for r in compiled.records], "memory": memory}
    if compiled.encoder is not None:
        passes = [pass_entry(r) for r in compiled.encoder[1]]
        entry["image"] = {"ir": GPU_IMAGE_IR_MEMBER, "passes": passes}
    return {"gpu": entry}


def image_entry(compiled: CompiledGraph) -> dict[str, Any]:
    """The entry `image`, where there is an encoder."""
    if compiled.encoder is None:
        return {}
    graph, records = compiled.encoder[0].main, compiled.encoder[1]
    pixels = graph.argument("pixels").tensor.shape
    # Where the result goes to the cache, it is what the rows that go there are taken from.
    result = next((op.operands[0] for op in graph.ops if op.opcode == "take_rows"), graph.outputs[0]).tensor.shape
    return {
        "image": {
            "ir": IMAGE_IR_MEMBER,
            "pixels": list(pixels),
            "embeddings": list(result),
            "joint": any(a.name == "aspect_ratio" for a in graph.arguments),
            "passes": [pass_entry(r) for r in records],
        }
    }


def _version() -> str:
    from importlib.metadata import version

    return version("llamac")


def pass_entry(record: PassRecord) -> dict[str, Any]:
    """One pass that ran."""
    result = record.result
    return {
        "name": record.name,
        "options": {k: v if isinstance(v, bool | int | float | str) else str(v) for k, v in record.options.items()},
        "changed": result.changed,
        "counts": dict(result.counts),
    }


def target_entry(target: Target) -> dict[str, Any]:
    """A CPU target, whose code has just been compiled."""
    return {
        "name": target.name,
        "kind": target.kind,
        "triple": target.triple,
        "requires": list(target.requires),
        "code": f"code/{target.stem}.so",
        "source": "code/model.c",
        "layout": target.share(0),
        "truth": "compiled",
        **ranks_entry(target),
    }


def ranks_entry(target: Target) -> dict[str, Any]:
    """The layouts of all ranks, where the model is divided."""
    return {"ranks": [target.share(rank) for rank in range(target.ranks)]} if target.ranks > 1 else {}


def weights_entry(member: str, compiled: CompiledGraph) -> dict[str, Any]:
    """One layout of weights and where each lies in it."""
    tensors = [
        {"name": p.weight.name, "offset": p.offset, "bytes": p.nbytes, "format": p.format, "shape": list(p.shape)}
        for p in compiled.placed
    ]
    layout = member.removeprefix("weights/").removesuffix(".bin")
    return {"layout": layout, "member": member, "bytes": compiled.limits.weight_bytes, "tensors": tensors}


def _memory_entry(compiled: CompiledGraph, config: LlamaConfig) -> dict[str, Any]:
    caches, limits = [g.type for g in kv_groups(compiled.module.step)], compiled.limits
    return {
        "arena_bytes": limits.arena_bytes,
        "kv_page_tokens": caches[0].page,
        "caches": [
            {"kind": c.kind, "chunk": c.chunk, "layers": cached_layers(config, c), "page_bytes": c.page_bytes}
            for c in caches
        ],
        "kv_dtype": compiled.kv_dtype,
        "max_step_tokens": limits.max_tokens,
        "weight_bytes": limits.weight_bytes,
        "weight_bytes_per_token": bytes_per_token(compiled.module, compiled.placed),
        "logits_bytes": 4 * limits.vocab,
    }
