"""What a compressed call did, and its picture."""

from vlmcompress.report.report import ImageReport, Report

__all__ = ["ImageReport", "Report"]
