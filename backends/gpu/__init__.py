"""The GPU backend: Triton kernels, compiled ahead of time to cubin and hsaco on a machine that needs no GPU."""
