"""Slides to try things on: real tissue, toys with planted truth, vendors' folders with a planted law."""

from ._her2st import HER2ST, her2st
from ._toy import toy_slide, toy_table

__all__ = ["HER2ST", "her2st", "toy_slide", "toy_table"]
