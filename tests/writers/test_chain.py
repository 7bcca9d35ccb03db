"""A generated Xenium run: converted, binned, written as superpixels, converted again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import stainseq as ss
from stainseq import image, regions


@pytest.mark.slow
def test_xenium_to_superpixels_and_back(tmp_path: Path) -> None:
    ss.datasets.xenium(tmp_path / "run", n_genes=6)
    sdata = ss.io.convert(tmp_path / "run", tmp_path / "s.zarr")
    ss.pp.superpixels(sdata)
    counted = ss.pp.aggregate(sdata, region="superpixels")
    ss.io.export(tmp_path / "s.zarr", tmp_path / "P" / "P-", to="superpixel", intermediate=True)
    back = ss.io.convert(tmp_path / "P" / "P-", tmp_path / "b.zarr", platform="superpixel")
    table = back["counts_superpixels"]
    assert list(table.obs_names) == list(counted.obs_names)
    assert (table.X != counted.X).nnz == 0
    ours, theirs = (regions.get(s, "superpixels") for s in (sdata, back))
    at = {i: (r, c) for i, r, c in zip(ours.ids, ours.geometry.rows, ours.geometry.cols, strict=True)}
    assert at == {i: (r, c) for i, r, c in zip(theirs.ids, theirs.geometry.rows, theirs.geometry.cols, strict=True)}
    np.testing.assert_array_equal(theirs.geometry.transform, np.diag([8.0, 8.0, 1.0]))
    pictures = [image.open_image(s) for s in (sdata, back)]
    assert pictures[0].mpp == pictures[1].mpp
    height, width = pictures[0].shape
    assert np.array_equal(*(p.read(0, 0, height, 0, width) for p in pictures))
    # Counted anew in the H&E's own frame, from the transcripts as their scripts leave them: the same counts.
    moved = pd.read_parquet(tmp_path / "P" / "P-transcript_he_pixel.parquet")
    step = 8.0 / pictures[0].mpp
    col, row = (np.floor(moved[c].to_numpy() / step).astype(int) for c in ("he_x", "he_y"))
    ids = pd.Series(row.astype(str)) + "_" + pd.Series(col.astype(str))
    naive = pd.crosstab(ids, moved["feature_name"]).reindex(index=table.obs_names, columns=table.var_names)
    np.testing.assert_array_equal(naive.fillna(0).to_numpy(), table.X.toarray())
    # Their alignment, read as theirs, lays the picture where it lay.
    theirs_says = {"he_alignment": str(tmp_path / "P" / "extras" / "morphology_to_he.txt")}
    again = ss.io.read(tmp_path / "run", he_direction="morphology_to_he", **theirs_says)
    np.testing.assert_allclose(image.open_image(again).to_um, pictures[0].to_um, atol=1e-9)
