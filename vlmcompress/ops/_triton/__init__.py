"""Triton kernels, one module for each module of `vlmcompress.ops`; imported only where they run."""
