"""Vendor folders and files to SpatialData: one module a platform, found by `registry`."""
