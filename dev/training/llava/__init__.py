"""The recipe of tiny-llava."""
