"""Running on GPUs: drivers, memory, launch lists and graphs, without torch and without the compiler of the kernels."""
