"""Counts of a window: the same rows from memory and from disk, for every kind of region."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import spatialdata
from scipy import sparse

from stainseq import keys, regions, store
from stainseq.errors import InputError, MissingError

KINDS = ["circles", "squares", "ragged", "raster", "bins"]
BOX = (30, 20, 70, 60)


def add(sdata: spatialdata.SpatialData, name: str, *, dense: bool = False, places: bool = False) -> None:
    """A table of the regions, in an order of its own and without every seventh."""
    region = regions.get(sdata, name)
    rng = np.random.default_rng(len(name))
    order = rng.permutation(len(region))
    order = order[order % 7 > 0]
    X = sparse.random(len(order), 6, density=0.5, format="csr", rng=rng, data_rvs=lambda n: rng.integers(1, 9, n))
    X = X.astype(np.int32)
    obs = {"kind": pd.Categorical(rng.choice(["a", "b"], len(order))), "flag": rng.random(len(order)) < 0.5}
    if places:
        obs |= {"array_row": region.geometry.rows[order], "array_col": region.geometry.cols[order]}
    made = regions.table(region.take(order), X.toarray() if dense else X, var_names=list("abcdef"), obs=obs)
    store.write_element(sdata, keys.counts(name), made, step="test", parameters={})


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("dense", [False, True])
def test_rows_of_the_window(slide, name: str, dense: bool) -> None:
    sdata = slide.sdata
    add(sdata, name, dense=dense, places=name == "bins")
    whole = sdata[keys.counts(name)]
    inside = set(regions.read_window(sdata, name, BOX).index.astype(str))
    want = whole[[i for i in whole.obs_names if i in inside]]
    assert 0 < want.n_obs < whole.n_obs
    opened = [sdata]
    if sdata.path is not None:
        opened.append(spatialdata.read_zarr(sdata.path, selection=("points", "shapes", "labels")))
        assert keys.counts(name) not in opened[1].tables
    for held in opened:
        got = regions.read_counts(held, name, BOX)
        assert list(got.obs_names) == list(want.obs_names)
        assert got.obs.astype(str).to_dict() == want.obs.astype(str).to_dict()
        assert isinstance(got.obs["kind"].dtype, pd.CategoricalDtype)
        values = [m.X.toarray() if sparse.issparse(m.X) else m.X for m in (got, want)]
        np.testing.assert_array_equal(*values)
        np.testing.assert_array_equal(got.obsm["spatial"], want.obsm["spatial"])
        assert list(got.var_names) == list("abcdef")
        assert regions.read_counts(held, regions.get(held, name), (-900, -900, -800, -800)).n_obs == 0


def test_tables_that_cannot_be(slide) -> None:
    add(slide.sdata, "bins")
    with pytest.raises(MissingError, match="no table 'none'"):
        regions.read_counts(slide.sdata, "squares", BOX, table="none")
    with pytest.raises(InputError, match="of other regions"):
        regions.read_counts(slide.sdata, "bins", BOX, table=_other(slide.sdata))


def _other(sdata: spatialdata.SpatialData) -> str:
    """A table of other regions with the same ids."""
    made = sdata["counts_bins"].copy()
    made.obs["region"] = pd.Categorical(["squares"] * made.n_obs)
    made.uns["spatialdata_attrs"]["region"] = "squares"
    store.write_element(sdata, "other", made, step="test", parameters={})
    return "other"


def test_a_slide_on_disk(tmp_path: Path) -> None:
    """The rows of a table that was never loaded."""
    import stainseq as ss

    sdata = ss.datasets.toy_slide(seed=0)
    ss.io.write(sdata, tmp_path / "s.zarr")
    held = spatialdata.read_zarr(tmp_path / "s.zarr", selection=("shapes",))
    centre = regions.get(held, "spots").centres_um.mean(axis=0)
    got = regions.read_counts(held, "spots", (*(centre - 150), *(centre + 150)))
    assert 0 < got.n_obs < sdata["counts_spots"].n_obs
    assert (got.X != sdata["counts_spots"][got.obs_names].X).nnz == 0
