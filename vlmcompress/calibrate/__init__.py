"""Schedules measured on a model: what `vlmcompress calibrate` runs."""

from vlmcompress.calibrate.adaptinfer import calibrate_adaptinfer
from vlmcompress.calibrate.gsearch import calibrate_gsearch
from vlmcompress.calibrate.questions import CalibrationQuestion, read_questions, training_questions

__all__ = [
    "CalibrationQuestion",
    "calibrate_adaptinfer",
    "calibrate_gsearch",
    "read_questions",
    "training_questions",
]
