"""Our low-bit operators beside those of other libraries, layer by layer: the parts of `benchmarks/kernels.py`."""
