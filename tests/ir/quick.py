"""Settings of the property tests: enough examples to mean something, few enough to stay quick."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

QUICK = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
FEW = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
