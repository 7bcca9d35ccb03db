"""The same 12 x 9 squares of tissue as polygons, labels and a grid, circles in them, and points over all."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
from spatialdata import SpatialData
from spatialdata.models import Labels2DModel, PointsModel, ShapesModel
from spatialdata.transformations import Affine, Identity, Scale

from stainseq import regions, store

ROWS, COLS, PITCH = 9, 12, 8.0
TURN = np.deg2rad(7)
GRID = np.array(
    [
        [PITCH * np.cos(TURN), -PITCH * np.sin(TURN), 20.0],
        [PITCH * np.sin(TURN), PITCH * np.cos(TURN), 5.0],
        [1e-4, -5e-5, 1.0],
    ]
)
KINDS = ["circles", "squares", "ragged", "raster", "bins"]


@dataclass
class Slide:
    sdata: SpatialData
    geometry: dict[str, dict[str, shapely.Geometry]]
    points: pd.DataFrame


def _ragged(rng: np.random.Generator) -> dict[str, shapely.Geometry]:
    """Polygons that overlap, one with a hole, one of two parts."""
    found = {}
    for i, (x, y) in enumerate(rng.uniform((10, 10), (110, 80), (30, 2))):
        turn = np.sort(rng.uniform(0, 2 * np.pi, 9))
        reach = rng.uniform(4, 11, 9)
        found[f"r{i}"] = shapely.Polygon(np.column_stack([x + reach * np.cos(turn), y + reach * np.sin(turn)]))
    found["hole"] = shapely.Point(60, 40).buffer(14).difference(shapely.Point(60, 40).buffer(6))
    found["two"] = shapely.MultiPolygon([shapely.box(0, 0, 6, 6), shapely.box(12, 0, 18, 6)])
    return found


def _polygons(ids: list[str], outlines: list[shapely.Geometry]) -> gpd.GeoDataFrame:
    return ShapesModel.parse(gpd.GeoDataFrame(geometry=outlines, index=ids), transformations={"um": Identity()})


def make(path: Path, *, written: bool) -> Slide:
    rng = np.random.default_rng(3)
    row, col = (v.ravel() for v in np.mgrid[:ROWS, :COLS])
    there = rng.random(len(row)) < 0.85
    row, col = row[there], col[there]
    square = [
        shapely.box(c * PITCH, r * PITCH, (c + 1) * PITCH, (r + 1) * PITCH) for r, c in zip(row, col, strict=True)
    ]
    ids = [f"s{r}x{c}" for r, c in zip(row, col, strict=True)]

    centres = shapely.centroid(square)
    radii = rng.uniform(2, 5, len(row))
    circles = gpd.GeoDataFrame({"radius": radii * 2}, geometry=shapely.transform(centres, lambda v: v * 2), index=ids)
    ragged = _ragged(rng)
    raster = np.zeros((int(ROWS * PITCH * 2), int(COLS * PITCH * 2)), dtype=np.uint32)
    for i, (r, c) in enumerate(zip(row, col, strict=True)):
        raster[r * 16 : r * 16 + 16, c * 16 : c * 16 + 16] = 3 * i + 2  # labels with gaps; 0.5 um a pixel
    n = 6000
    points = pd.DataFrame(
        {
            "x": rng.uniform(-5, 130, n),
            "y": rng.uniform(-5, 90, n),
            "feature_name": pd.Categorical(rng.choice(["ERBB2", "CD3E", "KRT5", "NEG"], n, p=[0.5, 0.3, 0.15, 0.05])),
            "qv": rng.uniform(0, 40, n),
        }
    )
    scaled = points.assign(x=points.x * 4 - 3, y=points.y * 4 + 8)  # points in px, to um by an affine
    to_um = Affine([[0.25, 0, 0.75], [0, 0.25, -2], [0, 0, 1]], ("x", "y"), ("x", "y"))
    sdata = SpatialData(
        shapes={
            "circles": ShapesModel.parse(circles, transformations={"um": Scale([0.5, 0.5], ("x", "y"))}),
            "squares": ShapesModel.parse(
                gpd.GeoDataFrame(geometry=square, index=ids), transformations={"um": Identity()}
            ),
            "ragged": ShapesModel.parse(
                gpd.GeoDataFrame(geometry=list(ragged.values()), index=list(ragged)), transformations={"um": Identity()}
            ),
        },
        labels={
            "raster": Labels2DModel.parse(
                raster, dims=("y", "x"), transformations={"um": Scale([0.5, 0.5], ("x", "y"))}
            )
        },
        points={"transcripts": PointsModel.parse(scaled, feature_key="feature_name", transformations={"um": to_um})},
    )
    if written:
        sdata = store.create(path, sdata, step="test", parameters={})
    shuffled = rng.permutation(len(row))
    regions.add_grid(
        sdata,
        "bins",
        rows=row[shuffled],
        cols=col[shuffled],
        ids=np.array(ids)[shuffled],
        shape=(ROWS, COLS),
        transform=GRID,
        step="test",
        parameters={},
    )
    around = ((0, 0), (1, 0), (1, 1), (0, 1))
    corners = np.stack([np.column_stack([col + dx, row + dy, np.ones(len(row))]) for dx, dy in around], 1)
    placed = corners @ GRID.T
    geometry = {
        "circles": {i: p.buffer(r, quad_segs=64) for i, p, r in zip(ids, centres, radii, strict=True)},
        "squares": dict(zip(ids, square, strict=True)),
        "ragged": ragged,
        "raster": {str(3 * i + 2): s for i, s in enumerate(square)},
        "bins": dict(zip(ids, shapely.polygons(placed[..., :2] / placed[..., 2:]), strict=True)),
    }
    return Slide(sdata, geometry, points)


@pytest.fixture(scope="session", params=[True, False], ids=["stored", "memory"])
def slide(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Slide:
    return make(tmp_path_factory.mktemp("regions") / "slide.zarr", written=request.param)
