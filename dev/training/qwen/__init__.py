"""The recipe of tiny-qwen."""
