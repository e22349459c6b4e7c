"""Analyses of graphs: costs, places of weights, places of intermediate values."""
