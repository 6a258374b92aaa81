"""Putting things on modules, reading hooked calls, taking everything off again."""
