"""What only grids and only labels have: five million bins, id tables, outlines across windows."""

from __future__ import annotations

import json
import subprocess
import sys

import anndata as ad
import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
import spatialdata
from spatialdata import SpatialData
from spatialdata.models import Labels2DModel, ShapesModel, TableModel
from spatialdata.transformations import Identity, Scale

from stainseq import regions, store
from stainseq.errors import InputError, ScaleError

PITCH = np.diag([8.0, 8.0, 1.0])


def grid(slide, **changes):
    given = {"rows": [0, 1], "cols": [1, 1], "ids": ["a", "b"], "shape": (2, 2), "transform": PITCH, **changes}
    regions.add_grid(slide, "bins", step="test", parameters={}, **given)


def test_what_add_grid_refuses():
    slide = SpatialData()
    for changes, said in [
        ({"rows": [0, 2]}, "outside a grid of 2 rows and 2 columns"),
        ({"rows": [0, -1]}, "outside a grid"),
        ({"rows": [1, 1]}, "same row and column"),
        ({"ids": ["a"]}, "differ in length"),
        ({"cols": [1]}, "differ in length"),
        ({"rows": [], "cols": [], "ids": []}, "without bins"),
        ({"transform": np.zeros((3, 3))}, "can be inverted"),
        ({"transform": np.eye(2)}, "3 x 3"),
    ]:
        with pytest.raises(InputError, match=said):
            grid(slide, **changes)
    assert "bins" not in slide


@pytest.mark.parametrize("ids", [None, "function", "arrow", "strings"])
def test_ids_of_a_grid(tmp_path, ids):
    import pyarrow as pa

    slide = store.create(tmp_path / "g.zarr", SpatialData(), step="x", parameters={})
    rows, cols = np.array([3, 0, 2]), np.array([1, 4, 2])
    names = ["s_3", "s_0", "s_2"]
    given = {
        None: None,
        "function": lambda r, c: [f"s_{i}" for i in r],
        "arrow": pa.chunked_array([names[:1], names[1:]]),
        "strings": np.array(names),
    }[ids]
    grid(slide, rows=rows, cols=cols, ids=given, shape=(4, 5))
    region = regions.get(slide, "bins")
    want = ["3_1", "0_4", "2_2"] if ids is None else names
    at = regions.assign(region, np.column_stack([cols * 8 + 4, rows * 8 + 4]))
    assert list(region.ids[at]) == want
    assert store.stamp_of(slide, "bins")["grid"] == {"shape": [4, 5], "transform": PITCH.tolist(), "pitch_um": 8.0}
    assert set(spatialdata.read_zarr(slide.path)["bins"].columns) == {"x", "y", "id", "row", "col"}


FIVE_MILLION = """
import json, resource, sys
import numpy as np
from spatialdata import SpatialData
from stainseq import regions, store

peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
side = 2250
slide = store.create(sys.argv[1], SpatialData(), step="x", parameters={})
rows, cols = np.divmod(np.arange(side * side, dtype=np.int32), side)
turn = np.deg2rad(1)
transform = [[2 * np.cos(turn), -2 * np.sin(turn), 50], [2 * np.sin(turn), 2 * np.cos(turn), 80], [1e-7, 0, 1]]
names = lambda r, c: np.char.add(np.char.add("s_002um_", r.astype(str)), np.char.add("_", c.astype(str)))
before = peak()
regions.add_grid(slide, "bins_002um", rows=rows, cols=cols, ids=names, shape=(side, side), transform=transform,
                 step="x", parameters={})
written = peak() - before
slide = store.open(sys.argv[1])
window = regions.read_window(slide, "bins_002um", (2000, 2000, 2050, 2050))
print(json.dumps({"written_gb": written, "n": len(window), "ids": sorted(window.index)[:3],
                  "places": window[["row", "col"]].values.tolist(), "area": float(window.area.mean())}))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="measures memory as Linux counts it")
def test_five_million_bins(tmp_path):
    """Written in bounded memory; a window is exact; the region assigns and pools like any other."""
    path = tmp_path / "g.zarr"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FIVE_MILLION, str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout.splitlines()[-1])
    assert facts["written_gb"] < 1.5
    slide = store.open(path)
    found = store.stamp_of(slide, "bins_002um")["grid"]
    transform = np.array(found["transform"])
    # The window by brute force over all bins.
    rows, cols = np.divmod(np.arange(2250 * 2250), 2250)
    corners = np.stack([np.column_stack([cols + dx, rows + dy]) for dx, dy in ((0, 0), (1, 0), (1, 1), (0, 1))], 1)
    placed = np.concatenate([corners, np.ones((*corners.shape[:2], 1))], 2) @ transform.T
    placed = placed[..., :2] / placed[..., 2:]
    near = np.flatnonzero(((placed.max(1) >= 2000) & (placed.min(1) <= 2050)).all(1))
    touching = near[shapely.intersects(shapely.polygons(placed[near]), shapely.box(2000, 2000, 2050, 2050))]
    assert facts["n"] == len(touching)
    assert {tuple(p) for p in facts["places"]} == set(
        zip(rows[touching].tolist(), cols[touching].tolist(), strict=True)
    )
    assert facts["area"] == pytest.approx(4, rel=0.01)
    region = regions.get(slide, "bins_002um")
    assert len(region) == 2250 * 2250
    rng = np.random.default_rng(0)
    pick = rng.integers(0, 2250 * 2250, 10_000)
    centre = np.column_stack([cols[pick] + 0.5, rows[pick] + 0.5, np.ones(len(pick))]) @ transform.T
    at = regions.assign(region, centre[:, :2] / centre[:, 2:])
    bins = region.geometry
    assert np.array_equal(bins.rows[at], rows[pick])
    assert np.array_equal(bins.cols[at], cols[pick])
    assert region.take(at[:50]).ids[7] == f"s_002um_{rows[pick[7]]}_{cols[pick[7]]}"


def labels_slide(values, table=None) -> SpatialData:
    raster = Labels2DModel.parse(values, dims=("y", "x"), transformations={"um": Scale([0.5, 0.5], ("x", "y"))})
    return SpatialData(
        labels={"cells_labels": raster}, tables={"counts_cells_labels": table} if table is not None else {}
    )


def id_table(labels, ids, *, column=None, spatial=True):
    obs = pd.DataFrame({"region": pd.Categorical(["cells_labels"] * len(ids)), "instance_id": labels}, index=ids)
    if column is not None:
        obs["label"] = column
    table = ad.AnnData(np.ones((len(ids), 1), np.float32), obs=obs)
    if spatial:
        table.obsm["spatial"] = np.arange(2.0 * len(ids)).reshape(-1, 2)
    return TableModel.parse(table, region="cells_labels", region_key="region", instance_key="instance_id")


def square_labels():
    values = np.zeros((40, 60), dtype=np.uint32)
    values[5:15, 5:15], values[20:30, 5:25], values[5:35, 40:50] = 7, 1200, 3_000_000_000
    return values


def test_ids_of_labels_come_from_their_table():
    labels = np.array([1200, 3_000_000_000, 7])
    slide = labels_slide(square_labels(), id_table(labels, ["b", "c", "a"]))
    region = regions.get(slide, "cells_labels")
    assert list(region.ids) == ["b", "c", "a"]
    assert list(region.instances) == labels.tolist()
    assert np.array_equal(region.centres_um, np.arange(6.0).reshape(-1, 2))
    assert regions.assign(region, np.array([[5.0, 5.0], [10, 12], [22, 10], [1, 1]])).tolist() == [2, 0, 1, -1]
    assert list(regions.read_window(slide, "cells_labels", (0, 0, 30, 20)).index) == ["b", "c", "a"]


def test_label_column_of_a_table_with_text_ids():
    """The table's instance key is the id; a column `label` links it to the raster."""
    labels = np.array([7, 1200, 3_000_000_000])
    slide = labels_slide(
        square_labels(), id_table(["x-1", "x-2", "x-3"], ["x-1", "x-2", "x-3"], column=labels, spatial=False)
    )
    region = regions.get(slide, "cells_labels")
    assert list(region.ids) == ["x-1", "x-2", "x-3"]
    assert np.allclose(region.centres_um, [[5, 5], [7.5, 12.5], [22.5, 10]])
    made = regions.table(region, np.ones((3, 2)), var_names=["a", "b"])
    assert made.obs["instance_id"].tolist() == labels.tolist()
    assert list(made.obs_names) == list(region.ids)


def test_labels_without_a_table():
    region = regions.get(labels_slide(square_labels()), "cells_labels")
    assert list(region.ids) == ["7", "1200", "3000000000"]
    assert np.allclose(region.centres_um, [[5, 5], [7.5, 12.5], [22.5, 10]])


def test_outlines_are_whole_beyond_the_window():
    """A long nucleus that a small window cuts comes back whole, with its holes and parts."""
    values = np.zeros((900, 1200), dtype=np.uint16)
    values[100:110, 20:1150] = 4
    values[102:105, 600:640] = 0
    values[300:320, 30:50] = 4
    slide = labels_slide(values)
    frame = regions.read_window(slide, "cells_labels", (299, 50, 301, 54))
    assert list(frame.index) == ["4"]
    whole = shapely.box(20, 100, 1150, 110).difference(shapely.box(600, 102, 640, 105))
    got = frame.geometry.iloc[0]
    assert shapely.transform(got, lambda xy: xy * 2).intersection(whole).area == pytest.approx(whole.area)
    assert len(regions.read_window(slide, "cells_labels", (1e6, 1e6, 2e6, 2e6))) == 0


def test_what_is_refused():
    spot = ShapesModel.parse(
        gpd.GeoDataFrame({"radius": [1.0]}, geometry=[shapely.Point(0, 0)], index=["a"]),
        transformations={"global": Identity()},
    )
    with pytest.raises(ScaleError, match="no transformation to 'um', shapes 'spots'"):
        regions.get(SpatialData(shapes={"spots": spot}), "spots")
    twice = pd.concat([spot, spot])
    twice.attrs["transform"] = {"um": Identity()}
    with pytest.raises(InputError, match="the id 'a' occurs more than once"):
        regions.get(SpatialData(shapes={"spots": twice}), "spots")
    with pytest.raises(InputError, match="1 rows for 3 regions"):
        regions.table(regions.get(labels_slide(square_labels()), "cells_labels"), np.ones((1, 2)), var_names=["a", "b"])
