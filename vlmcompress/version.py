"""The version of the package: a literal, because setuptools reads it from the source."""

__version__ = "0.1.0"
