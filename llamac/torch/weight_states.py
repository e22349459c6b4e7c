"""Whether weights are those that a graph was compiled with: code holds their values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from llamac.errors import LlamacError

from .graph_inputs import GraphInputs


def state_of_weight(weight: torch.Tensor) -> tuple[float, int]:
    """What differs when the values do: where they lie, and how often they were written to; of one number itself.

    Dynamo makes tensors of a module's plain numbers, new ones for each call.
    """
    if not weight.ndim:
        return weight.item(), 0
    return weight.data_ptr(), 0 if weight.is_inference() else weight._version


class WeightStates:
    """The weights that a graph was compiled with: they are in the artifact, so that a call with others is LLC0958."""

    def __init__(self, inputs: GraphInputs) -> None:
        held = {**inputs.weights, **inputs.tables}
        self._states = [(inputs.places[node], node.name, state_of_weight(value)) for node, value in held.items()]

    def check(self, inputs: Sequence[Any]) -> None:
        """LLC0958 unless the weights among a call's inputs are those, with the values that they had."""
        for place, name, state in self._states:
            if state_of_weight(inputs[place]) != state:
                reason = "its values have changed since the module was compiled, and the code holds the old ones"
                raise LlamacError("LLC0958", name, reason, "call torch.compiler.reset() and compile the module again")
