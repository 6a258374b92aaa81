"""Adapters to other evaluation harnesses."""
