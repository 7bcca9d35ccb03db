"""GeoJSON against the regions it was made from."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import shapely

import stainseq as ss
from stainseq.errors import MissingError


def features(path: Path) -> list[dict]:
    found = json.loads(path.read_text())
    assert found["type"] == "FeatureCollection"
    return found["features"]


def test_circles_with_classes_and_measurements(make: ModuleType, tmp_path: Path) -> None:
    sdata = make.slide()
    table = sdata["counts_cells"]
    ss.io.export(
        sdata, tmp_path / "a.geojson", to="geojson", region="cells", classes="kind", measurements="area,KRT8,EPCAM"
    )
    found = features(tmp_path / "a.geojson")
    assert [f["properties"]["name"] for f in found] == list(table.obs_names)
    assert len({f["id"] for f in found}) == 30
    for i, feature in enumerate(found):
        outline = shapely.geometry.shape(feature["geometry"])
        np.testing.assert_allclose(outline.centroid.coords[0], table.obsm["spatial"][i] / 0.4, atol=2e-3)
        assert outline.area == pytest.approx(np.pi * (3.5 / 0.4) ** 2, rel=0.01)
        told = feature["properties"]
        assert told["objectType"] == "detection"
        assert told["classification"]["name"] == table.obs["kind"].iloc[i]
        assert told["measurements"] == {
            "area": table.obs["area"].iloc[i],
            "KRT8": float(table.X[i, 4]),
            "EPCAM": float(table.X[i, 0]),
        }
    colours = {f["properties"]["classification"]["name"]: f["properties"]["classification"]["color"] for f in found}
    assert len(colours) == 2
    assert colours["immune"] != colours["tumour"]


def test_superpixels_are_tiles_in_pixels(make: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from stainseq.writers import _place

    monkeypatch.setattr(_place, "_BLOCK", 7)  # so many at a time
    sdata = make.slide(cells=False)
    ss.io.export(sdata, tmp_path / "a.json", to="geojson", region="superpixels")
    found = features(tmp_path / "a.json")
    assert len(found) == sdata["counts_superpixels"].n_obs
    for feature in found:
        row, col = (int(v) for v in feature["properties"]["name"].split("_"))
        assert shapely.geometry.shape(feature["geometry"]).bounds == (20 * col, 20 * row, 20 * col + 20, 20 * row + 20)
        assert feature["properties"]["objectType"] == "tile"


def test_regions_without_a_table_are_annotations(make: ModuleType, tmp_path: Path) -> None:
    sdata = make.slide()
    del sdata.tables["counts_cells"]
    ss.io.export(sdata, tmp_path / "a.geojson", to="geojson", region="cells")
    assert {f["properties"]["objectType"] for f in features(tmp_path / "a.geojson")} == {"annotation"}
    with pytest.raises(MissingError, match="no table of 'cells' for classes"):
        ss.io.export(sdata, tmp_path / "b.geojson", to="geojson", region="cells", classes="kind")
    with pytest.raises(MissingError, match=r"no regions are named.*cells, superpixels"):
        ss.io.export(make.slide(), tmp_path / "b.geojson", to="geojson")


def test_columns_that_are_not_there(make: ModuleType, tmp_path: Path) -> None:
    sdata = make.slide()
    with pytest.raises(MissingError, match=r"no column 'type'.*kind"):
        ss.io.export(sdata, tmp_path / "b.geojson", to="geojson", region="cells", classes="type")
    with pytest.raises(MissingError, match="no gene or numeric column NOPE"):
        ss.io.export(sdata, tmp_path / "b.geojson", to="geojson", region="cells", measurements=["NOPE"])
