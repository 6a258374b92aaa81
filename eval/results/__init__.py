"""Answers read back, scored and compared."""
