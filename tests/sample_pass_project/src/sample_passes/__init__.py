"""Passes for llamac, and their place in its pipeline: `llamac compile --passes-from sample_passes`."""

from __future__ import annotations

from llamac.transform.pipeline import Step

from .join_gate_up import JoinGateUp


def insert(steps: list[Step]) -> list[Step]:
    """Ours instead of llamac's own, with the same expectation: once a layer."""
    return [Step(JoinGateUp(), s.expected) if s.run.name == "fuse-gate-up" else s for s in steps]
