"""One rule an op: what loops compute it."""
