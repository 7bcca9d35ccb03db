"""Slides to try things on: real tissue, toys with planted truth, vendors' folders with a planted law."""

from ._her2st import HER2ST, her2st
from ._planted import Planted, planted
from ._toy import toy_slide, toy_table
from ._visium_hd import visium_hd
from ._xenium import xenium

__all__ = ["HER2ST", "Planted", "her2st", "planted", "toy_slide", "toy_table", "visium_hd", "xenium"]
