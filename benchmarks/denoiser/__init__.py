"""A whole denoiser beside other runtimes: the parts of `benchmarks/endtoend.py`."""
