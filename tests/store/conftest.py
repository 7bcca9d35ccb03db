"""Small elements of every kind, in two versions."""

from __future__ import annotations

from typing import Any

import anndata as ad
import dask.array as da
import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from shapely import Point
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, Labels2DModel, PointsModel, ShapesModel, TableModel
from spatialdata.transformations import Identity, Scale

NAMES = {
    "images": "he",
    "labels": "nuclei_labels",
    "points": "transcripts",
    "shapes": "spots",
    "tables": "counts_spots",
}
KINDS = list(NAMES)


def element(kind: str, version: int = 0) -> Any:
    rng = np.random.default_rng([version, KINDS.index(kind)])
    um = {"global": Identity(), "um": Scale([0.5, 0.5], ("x", "y"))}
    if kind == "images":
        values = rng.integers(0, 255, (3, 700, 610), dtype=np.uint8)
        lazy = da.from_array(values, chunks=(3, 300, 200))
        return Image2DModel.parse(lazy, dims=("c", "y", "x"), c_coords=["r", "g", "b"], transformations=um)
    if kind == "labels":
        values = rng.integers(0, 9, (130, 90), dtype=np.uint32)
        return Labels2DModel.parse(values, dims=("y", "x"), transformations={"um": um["um"]})
    if kind == "points":
        frame = pd.DataFrame(
            {
                "x": rng.uniform(0, 900, 3000).astype(np.float32),
                "y": rng.uniform(0, 900, 3000).astype(np.float32),
                "feature_name": pd.Categorical(rng.choice(["A", "B", "C"], 3000)),
                "cell_id": rng.choice(["c1", "c2", None], 3000),
            }
        )
        return PointsModel.parse(frame, feature_key="feature_name", transformations={"um": Identity()})
    ids = [f"spot_{i}" for i in range(20)]
    if kind == "shapes":
        frame = gpd.GeoDataFrame(
            {"radius": 27.5}, geometry=[Point(*p) for p in rng.uniform(0, 300, (20, 2))], index=ids
        )
        return ShapesModel.parse(frame, transformations={"um": Identity()})
    counts = sp.csr_matrix(rng.poisson(0.7, (20, 30)).astype(np.int32))
    obs = pd.DataFrame({"region": pd.Categorical(["spots"] * 20), "instance_id": ids, "n": rng.random(20)}, index=ids)
    table = ad.AnnData(counts, obs=obs, var=pd.DataFrame(index=[f"G{i}" for i in range(30)]))
    table.obsm["spatial"] = rng.uniform(0, 300, (20, 2))
    return TableModel.parse(table, region="spots", region_key="region", instance_key="instance_id")


def whole_slide(version: int = 0) -> SpatialData:
    return SpatialData(**{kind: {name: element(kind, version)} for kind, name in NAMES.items()})


@pytest.fixture
def slide() -> SpatialData:
    return whole_slide()


@pytest.fixture
def stored(tmp_path, slide):
    from stainseq import store

    return store.create(tmp_path / "s.zarr", slide, step="convert", parameters={"mpp": 0.5}, facts={"slide": "S1"})


@pytest.fixture
def make_element():
    return element


@pytest.fixture
def make_slide():
    return whole_slide
