"""Versions: literals, because setuptools reads that of the package from the source."""

__version__ = "0.1.0"

NEWEST_TRANSFORMERS = "5.24.0"
"""The newest transformers that the tests run on: the pin of constraints.txt."""
