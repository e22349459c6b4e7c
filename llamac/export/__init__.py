"""Hands a model to other systems: `llamac export`."""
