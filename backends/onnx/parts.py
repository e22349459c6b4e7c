"""Cuts a model-level step where pictures come in: the embedding of ids, and what begins with embedded tokens."""

from __future__ import annotations

from llamac.ir.graph import Module, Op, Value

from .emitter import EMBEDS


def decoder_of(module: Module) -> Module:
    """The step from embedded tokens on, in place: it takes `inputs_embeds` [T, d] instead of `ids`."""
    graph, lookup = module.step, _lookup(module)
    embeds = Value(EMBEDS, lookup.result.type)
    graph.arguments = [embeds if argument.name == "ids" else argument for argument in graph.arguments]
    graph.replace(lookup.result, embeds)
    return _without_the_rest(module)


def embedding_of(module: Module) -> Module:
    """The lookup of ids alone, in place: ids [T] -> [T, d]."""
    graph = module.step
    graph.outputs = [_lookup(module).result]
    graph.arguments = [graph.argument("ids")]
    return _without_the_rest(module)


def _lookup(module: Module) -> Op:
    (found,) = (op for op in module.step.ops if op.opcode == "embedding")
    return found


def _without_the_rest(module: Module) -> Module:
    while module.step.remove_dead_ops():
        pass
    module.remove_dead_weights()
    return module
