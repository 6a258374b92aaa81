"""Adapters: what each model family is like. Adding a family touches this folder only."""
