"""Removes ops whose results nobody uses and weights that nothing refers to."""

from __future__ import annotations

from dataclasses import dataclass

from llamac.ir.graph import Module
from llamac.ir.levels import LEVELS
from llamac.transform.base import Pass, PassContext, PassResult


@dataclass(frozen=True)
class EliminateDead(Pass):
    """Unused ops and weights -> nothing."""

    name = "eliminate-dead"
    requires = LEVELS

    def run(self, module: Module, context: PassContext) -> PassResult:
        ops = sum(graph.remove_dead_ops() for graph in module.graphs.values())
        return PassResult({"op": ops, "weight": module.remove_dead_weights()})
