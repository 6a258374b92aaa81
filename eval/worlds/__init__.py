"""Scenes and clips that are drawn, with questions that have exactly one right answer."""
