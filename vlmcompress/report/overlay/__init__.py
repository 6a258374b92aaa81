"""A picture of what a method kept: dropped patches are dimmed, merged ones outlined."""

from vlmcompress.report.overlay.boxes import visible_box
from vlmcompress.report.overlay.draw import SHEET, draw, side_by_side
from vlmcompress.report.overlay.steps import survival

__all__ = ["SHEET", "draw", "side_by_side", "survival", "visible_box"]
