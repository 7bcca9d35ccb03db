"""Tests for spatially variable genes: one file each, arrays in, a table out."""
