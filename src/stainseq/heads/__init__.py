"""Heads: from features to expression, on arrays. One file each; see CONTRIBUTING.md for the contract."""
