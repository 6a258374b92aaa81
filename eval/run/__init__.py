"""Asking models the questions of tasks, and storing the answers."""
