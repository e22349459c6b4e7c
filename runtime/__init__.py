"""The runtime: loads an artifact and generates with it. No compiler, no IR, no torch."""
