"""The recipe of small-llava."""
