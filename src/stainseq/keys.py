"""Every default element, column and coordinate-system name, in one place."""

from __future__ import annotations

HE = "he"
UM = "um"
TRANSCRIPTS = "transcripts"
TISSUE = "tissue"
SPOTS = "spots"
CELLS = "cells"
NUCLEI = "nuclei"
GRID = "grid"
PATCHES = "patches"
SUPERPIXELS = "superpixels"

STAMP = "stainseq"
"""Key of our facts in `.attrs` (elements, store) and `.uns` (tables)."""

REGION_KEY = "region"
INSTANCE_KEY = "instance_id"
"""obs columns that link a table to its region, as spatialdata requires."""

SPATIAL = "spatial"
"""obsm key of region centres in microns, x then y."""

SAMPLE = "sample"
FOLD = "fold"
SPREAD = "spread"


def counts(region: str) -> str:
    """Name of the raw counts table of a region."""
    return f"counts_{region}"


def features(encoder: str, region: str) -> str:
    """Name of the feature table of an encoder on a region."""
    return f"features_{encoder}_{region}"


def prediction(head: str, region: str) -> str:
    """Name of the prediction table of a head on a region."""
    return f"pred_{head}_{region}"
