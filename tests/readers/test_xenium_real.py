"""Real Xenium output: a cut-out with outlines, transcripts and DAPI; a whole section's cells."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import shapely

import stainseq as ss
from stainseq import regions
from stainseq.errors import InputError
from stainseq.readers import xenium

CUT = {"mpp": 1.7, "morphology_origin_um": [999, 1000]}


def test_a_cut_out_joins_cells_nuclei_transcripts_and_image(data_dir: Path, tmp_path: Path) -> None:
    source = data_dir / "xenium_crop"
    assert xenium.sniff(source) == xenium.sniff(source / "transcripts.parquet") == "Xenium"
    sdata = ss.io.convert(source, tmp_path / "x.zarr", **CUT)
    table, cells, nuclei = sdata["counts_cells"], sdata["cells"], sdata["nuclei"]
    assert table.shape == (569, 27)
    assert list(cells.index) == list(table.obs_names)
    frame = pd.read_parquet(source / "cells.parquet").set_index("cell_id")
    # Counts of genes agree with the run's own totals, and outlines with its areas and centres.
    np.testing.assert_array_equal(
        np.asarray(table.X.sum(axis=1)).ravel(), frame.loc[table.obs_names, "transcript_counts"]
    )
    centroid = shapely.get_coordinates(cells.geometry.centroid.to_numpy())
    off = np.linalg.norm(centroid - frame.loc[cells.index, ["x_centroid", "y_centroid"]].to_numpy(), axis=1)
    assert np.median(off) < 1.0
    assert np.corrcoef(cells.geometry.area, frame.loc[cells.index, "cell_area"])[0, 1] > 0.99
    assert set(nuclei["cell_id"]) <= set(cells.index)
    raw = pd.read_parquet(source / "transcripts.parquet")
    kept = raw[(raw["qv"] >= 20) & raw["feature_name"].isin(table.var_names)]
    points = sdata["transcripts"].compute()
    assert len(points) == len(kept)
    assert points["feature_name"].value_counts().to_dict() == kept["feature_name"].value_counts().to_dict()
    # Transcripts that the run assigned to a cell lie in its outline (5 % on the edge of simplified outlines).
    mine = points[points["cell_id"].isin(cells.index)]
    outlines = cells.geometry.loc[mine["cell_id"].astype(str)].to_numpy()
    assert shapely.contains_xy(outlines, mine["x"].to_numpy(), mine["y"].to_numpy()).mean() > 0.95
    # Nuclei are bright in the DAPI image, which tells that both lie in one frame.
    dapi = np.asarray(sdata["morphology"].data)[0]
    at = ((shapely.get_coordinates(nuclei.geometry.centroid.to_numpy()) - [999, 1000]) / 1.7).astype(int)
    at = at[((at >= 0) & (at < dapi.shape[0])).all(axis=1)]
    assert dapi[at[:, 1], at[:, 0]].mean() > 1.5 * dapi.mean()


def test_parquet_and_csv_tell_the_same(data_dir: Path, tmp_path: Path) -> None:
    source, other = data_dir / "xenium_crop", tmp_path / "csv"
    other.mkdir()
    for file in [*source.glob("*.csv.gz"), source / "cell_feature_matrix.h5"]:
        (other / file.name).write_bytes(file.read_bytes())
    a, b = ss.io.read(source, **CUT), ss.io.read(other)
    assert a["counts_cells"].obs_names.equals(b["counts_cells"].obs_names)
    x, y = (s["transcripts"].compute().sort_values(["x", "y", "feature_name"]) for s in (a, b))
    assert len(x) == len(y)
    np.testing.assert_allclose(x[["x", "y", "qv"]].to_numpy(), y[["x", "y", "qv"]].to_numpy(), atol=1e-3)
    assert x["feature_name"].astype(str).tolist() == y["feature_name"].astype(str).tolist()
    assert shapely.equals_exact(a["cells"].geometry.to_numpy(), b["cells"].geometry.to_numpy(), tolerance=1e-3).all()


def test_options_of_the_transcripts(data_dir: Path) -> None:
    source = data_dir / "xenium_crop"
    raw = pd.read_parquet(source / "transcripts.parquet")
    everything = ss.io.read(source, **CUT, min_qv=0, controls=True)
    assert len(everything["transcripts"]) == len(raw)
    assert everything["counts_cells"].n_vars == 541
    assert "transcripts" not in ss.io.read(source, **CUT, transcripts=False).points
    assert "morphology" not in ss.io.read(source, morphology=False).images


def test_cells_outside_the_image_are_refused(data_dir: Path) -> None:
    with pytest.raises(InputError, match="of the cells lie in the morphology image"):
        ss.io.read(data_dir / "xenium_crop")


def test_a_whole_section_of_the_first_version(data_dir: Path, tmp_path: Path) -> None:
    sdata = ss.io.convert(data_dir / "xenium_mouse_brain", tmp_path / "b.zarr")
    table = sdata["counts_cells"]
    assert table.shape == (36_602, 248)
    assert table.obs_names[0] == "1"
    assert (table.obs["transcript_counts"].to_numpy() == np.asarray(table.X.sum(axis=1)).ravel()).all()


def test_tables_of_different_runs_are_refused(data_dir: Path) -> None:
    with pytest.raises(InputError, match="no id in common"):
        ss.io.read(data_dir / "xenium_schema_v3" / "sample1")


def test_our_counts_against_the_runs_own_assignment(data_dir: Path) -> None:
    """The cut-out holds a tenth of its transcripts: counts by outline agree with those by `cell_id`."""
    sdata = ss.io.read(data_dir / "xenium_crop", **CUT)
    vendor = sdata["counts_cells"]
    ours = regions.aggregate(sdata, "cells", "transcripts")[vendor.obs_names].to_df()
    ours = ours.reindex(columns=vendor.var_names, fill_value=0)
    points = sdata["transcripts"].compute()
    assigned = points[points["cell_id"] != "UNASSIGNED"]
    own = assigned.groupby(["cell_id", "feature_name"], observed=True).size().unstack(fill_value=0)
    own = own.reindex(index=vendor.obs_names, columns=vendor.var_names, fill_value=0)
    assert (own.to_numpy() <= vendor.X.toarray()).all()
    there = own.to_numpy() > 0
    # The rest lie between the mask that the run counted by and its simplified outline.
    assert (ours.to_numpy() == own.to_numpy())[there].mean() > 0.97
    assert abs(ours.to_numpy().sum() / own.to_numpy().sum() - 1) < 0.02
