"""The TVM backend: kernel-level graphs of one sequence as Relax functions over TIR loops (docs/interop.md)."""
