"""The CPU backend: readable C, compiled by the clang of the `ziglang` wheel."""
