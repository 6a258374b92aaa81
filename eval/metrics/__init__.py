"""Scores of answers, by name."""

from vlmcompress.eval.metrics.metrics import METRICS, Metric, f1

__all__ = ["METRICS", "Metric", "f1"]
