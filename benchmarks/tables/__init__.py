"""Tables of methods and settings, measured alike: `python -m benchmarks.tables NAME`."""
