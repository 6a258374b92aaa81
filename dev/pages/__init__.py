"""Generators of README.md and docs/."""
