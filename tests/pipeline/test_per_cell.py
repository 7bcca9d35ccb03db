"""Predictions of superpixels averaged over cells, against loops over shapely polygons and pixels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely

import stainseq as ss
from stainseq import regions, store
from stainseq.cli import run
from stainseq.errors import InputError, MissingError
from stainseq.store import matrices

ANGLE = 0.3
SIDE = 12


def cells() -> np.ndarray:
    """30 cells of irregular outlines, some beyond the grid, one with a hole."""
    rng = np.random.default_rng(2)
    out = []
    for centre in rng.uniform(-5, 105, (30, 2)):
        angle = np.sort(rng.uniform(0, 2 * np.pi, 9))
        radius = rng.uniform(3, 8, 9)
        out.append(shapely.Polygon(centre + radius[:, None] * np.column_stack([np.cos(angle), np.sin(angle)])))
    out[3] = shapely.Point(50, 50).buffer(12).difference(shapely.Point(50, 50).buffer(5))
    return np.array([shapely.make_valid(p) if not p.is_valid else p for p in out])


def grid_transform() -> np.ndarray:
    c, s = np.cos(ANGLE), np.sin(ANGLE)
    return np.array([[8 * c, -8 * s, 20.0], [8 * s, 8 * c, -10.0], [0, 0, 1.0]])


@pytest.fixture
def slide(tmp_path: Path) -> Path:
    import geopandas as gpd
    from spatialdata import SpatialData
    from spatialdata.models import Labels2DModel, ShapesModel
    from spatialdata.transformations import Identity, Scale

    frame = gpd.GeoDataFrame(geometry=list(cells()), index=[f"c{i}" for i in range(30)])
    raster = np.zeros((240, 240), np.int32)
    raster[20:60, 30:90], raster[100:130, 100:131], raster[232:, 232:] = 4, 9, 2
    half = Scale([0.5, 0.5], axes=("x", "y"))
    made = SpatialData(
        shapes={"cells": ShapesModel.parse(frame, transformations={"um": Identity()})},
        labels={"cells_labels": Labels2DModel.parse(raster, dims=("y", "x"), transformations={"um": half})},
    )
    sdata = store.create(tmp_path / "s.zarr", made, step="convert", parameters={})
    rng = np.random.default_rng(0)
    rows, cols = (v.ravel() for v in np.mgrid[:SIDE, :SIDE])
    there = rng.random(len(rows)) > 0.15
    regions.add_grid(
        sdata, "superpixels", rows=rows[there], cols=cols[there], ids=None, shape=(SIDE, SIDE),
        transform=grid_transform(), step="superpixels", parameters={},
    )  # fmt: skip
    where = regions.get(sdata, "superpixels")
    some = np.flatnonzero(rng.random(len(where)) > 0.1)  # as after quality: not all have a row, in another order
    some = rng.permutation(some)
    values = rng.random((len(some), 11)).astype(np.float32)
    table = regions.table(where.take(some), values, var_names=[f"g{i}" for i in range(11)])
    table.layers["spread"] = rng.random(values.shape).astype(np.float32)
    table.obs["fold"] = rng.integers(-1, 3, len(some))
    store.write_element(
        sdata, "pred_ridge_superpixels", table, step="predict", parameters={"head": "ridge"},
        more={"units": "log1p(counts)"},
    )  # fmt: skip
    return tmp_path / "s.zarr"


def expected(sdata: Any) -> tuple[np.ndarray, np.ndarray]:
    """Area of every cell in every row's square, one by one."""
    table = sdata.tables["pred_ridge_superpixels"]
    matrix, area = grid_transform(), np.zeros((30, table.n_obs))
    for j, name in enumerate(table.obs_names):
        r, c = (int(v) for v in name.split("_"))
        corners = np.array([[c, r, 1], [c + 1, r, 1], [c + 1, r + 1, 1], [c, r + 1, 1]]) @ matrix.T
        square = shapely.Polygon(corners[:, :2])
        for i, cell in enumerate(cells()):
            area[i, j] = cell.intersection(square).area / cell.area
    return area, np.asarray(table.X)


def test_area_weighted_means_are_those_of_shapely(slide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrices, "chunks_for", lambda n, g, itemsize=4: (min(9, n), min(4, g)))
    monkeypatch.setattr(matrices, "LAZY_ABOVE", 100)
    monkeypatch.setattr("stainseq.regions.overlap._PAIRS_AT_ONCE", 20)
    sdata = store.open(slide)
    ss.tl.per_cell(sdata, "pred_ridge_superpixels")
    made, (area, values) = sdata.tables["pred_ridge_cells"], expected(sdata)
    kept = np.flatnonzero(area.sum(1) > 1e-12)
    assert 0 < len(kept) < 30
    assert list(made.obs_names) == [f"c{i}" for i in kept]
    weights = area[kept] / area[kept].sum(1, keepdims=True)
    np.testing.assert_allclose(np.asarray(made.X), weights @ values, rtol=1e-5)
    spread = np.asarray(sdata.tables["pred_ridge_superpixels"].layers["spread"])
    np.testing.assert_allclose(np.asarray(made.layers["spread"]), weights @ spread, rtol=1e-5)
    np.testing.assert_allclose(made.obs["coverage"], area[kept].sum(1), rtol=1e-5)
    fold = sdata.tables["pred_ridge_superpixels"].obs["fold"].to_numpy()
    np.testing.assert_array_equal(made.obs["fold"], fold[weights.argmax(1)])
    stamp = store.stamp_of(sdata, "pred_ridge_cells") or {}
    assert (stamp["units"], stamp["left_out"]) == ("log1p(counts)", 30 - len(kept))


def test_centres_take_one_superpixel(slide: Path) -> None:
    sdata = store.open(slide)
    ss.tl.per_cell(sdata, "pred_ridge_superpixels", weight="centre", key_added="by_centre")
    made, table = sdata.tables["by_centre"], sdata.tables["pred_ridge_superpixels"]
    back = np.linalg.inv(grid_transform())
    for name in made.obs_names:
        x, y = made.obsm["spatial"][made.obs_names.get_loc(name)]
        c, r, _ = np.floor(back @ [x, y, 1])
        np.testing.assert_allclose(made[name].X.ravel(), table[f"{int(r)}_{int(c)}"].X.ravel(), rtol=1e-6)
    assert (made.obs["coverage"] == 1).all()


def test_labels_count_by_their_pixels(slide: Path) -> None:
    sdata = store.open(slide)
    ss.tl.per_cell(sdata, "pred_ridge_superpixels", region="cells_labels")
    made, table = sdata.tables["pred_ridge_cells_labels"], sdata.tables["pred_ridge_superpixels"]
    raster = regions.get(sdata, "cells_labels").geometry.raster.compute()
    back = np.linalg.inv(grid_transform())
    assert "2" not in made.obs_names  # beyond the grid
    for label in (4, 9):
        total, seen = np.zeros(11), 0
        pixels = np.argwhere(raster == label)
        for y, x in pixels:
            c, r, _ = np.floor(back @ [(x + 0.5) / 2, (y + 0.5) / 2, 1]).astype(int)
            if f"{r}_{c}" in table.obs_names:
                total += table[f"{r}_{c}"].X.ravel()
                seen += 1
        np.testing.assert_allclose(made[str(label)].X.ravel(), total / seen, rtol=1e-4)
        assert made.obs.loc[str(label), "coverage"] == pytest.approx(seen / len(pixels), rel=1e-5)


def test_command_and_refusals(slide: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.json"
    command = ["aggregate", str(slide), "--region", "cells", "--table", "pred_ridge_superpixels", "--json", str(out)]
    assert run(command) == 0
    found = json.loads(out.read_text())
    assert found["table"] == "pred_ridge_cells"
    assert found["n"] + found["left_out"] == 30
    assert run([*command, "--min-qv", "20"]) == 1
    sdata = store.open(slide)
    with pytest.raises(InputError, match="min_coverage is -1"):
        ss.tl.per_cell(sdata, "nothing", min_coverage=-1.0)
    with pytest.raises(MissingError, match="no table 'nothing'"):
        ss.tl.per_cell(sdata, "nothing")
    with pytest.raises(InputError, match="is no grid"):
        ss.tl.per_cell(sdata, "pred_ridge_cells", key_added="again")
    with pytest.raises(InputError, match="none of 30 cells lies under"):
        ss.tl.per_cell(sdata, "pred_ridge_superpixels", min_coverage=1.0, key_added="none")
