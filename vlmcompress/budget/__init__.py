"""Budgets: their text, counts per image and layer, and what a cost allows."""

from vlmcompress.budget.budget import Budget

__all__ = ["Budget"]
