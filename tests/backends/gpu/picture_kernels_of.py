"""The kernels that pictures need at the sizes of the released models, as requests."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache

from llamac.backends.gpu.architectures import architecture
from llamac.backends.gpu.build import identity
from llamac.backends.gpu.calls import Call
from llamac.backends.gpu.encoder_calls import EncoderCalls, encoder_calls
from llamac.backends.gpu.launches import BucketCalls, bucket_calls, step_shapes
from llamac.backends.gpu.request import KernelRequest
from llamac.driver import CompiledGraph, compile_graph
from llamac.models.presets import preset
from llamac.models.random_weights import random_checkpoint
from llamac.passes.pipelines import parse_quantization
from llamac.planning.few_layers import few_layers
from llamac.target import GPUS

UNITS = GPUS["h100"].units
MODELS = {"scout": "llama-4-scout", "vision-11b": "llama-3.2-11b-vision"}


@cache
def few(name: str) -> CompiledGraph:
    """A model of the true widths with every kind of layer and block twice."""
    config = few_layers(preset(MODELS[name]), {}).config
    checkpoint = random_checkpoint(replace(config, dtype="bf16"), 0)
    return compile_graph(checkpoint, parse_quantization("keep"), None, 512, None, [], kind="gpu")


def encoder_of(name: str, target: str) -> EncoderCalls:
    """The launches of its encoder."""
    graph = few(name)
    assert graph.image is not None
    return encoder_calls(graph.image, graph.placed, architecture(target), UNITS)


def buckets_of(name: str, target: str) -> list[BucketCalls]:
    """Its smallest, a middle, and its largest step."""
    graph, shapes = few(name), step_shapes(512)
    machine = architecture(target)
    return [bucket_calls(graph.module, graph.placed, machine, UNITS, shapes[i]) for i in (0, 3, -1)]


def picture_requests_of(name: str, target: str) -> Iterator[KernelRequest]:
    """Each kernel once: those of the encoder, then those of steps that only models with pictures have."""
    calls: list[Call] = list(encoder_of(name, target).body)
    for bucket in buckets_of(name, target):
        calls += [call for call in bucket.body if call.request.family in ("vision", "pictures")]
    yield from {identity(call.request, target): call.request for call in calls}.values()
