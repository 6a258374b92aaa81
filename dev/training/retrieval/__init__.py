"""Trains the built-in page retriever."""
