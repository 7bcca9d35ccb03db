"""Spatial domain methods: one file each, arrays in, labels out."""
