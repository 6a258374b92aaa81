"""Synthetic worlds, the training of the built-in models, and evaluation."""
