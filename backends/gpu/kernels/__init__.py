"""The Triton kernels, one family a file. Importing any of them imports Triton: go through `toolchain.load_kernel`."""
