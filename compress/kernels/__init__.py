"""The low-bit operators: one table (`schema`), a plain reference, faster backends, and the torch operators over them.

Importing `compress.kernels.torch_ops` registers `torch.ops.compress.*`; importing this package does nothing.
"""
