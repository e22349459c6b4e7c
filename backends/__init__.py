"""Backends: each turns a kernel-level module into something that runs, or only counts it."""
