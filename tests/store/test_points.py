"""Points: order, windows, out-of-core sorting, columns."""

from __future__ import annotations

import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import spatialdata
from hypothesis import given
from hypothesis import settings as hsettings
from hypothesis import strategies as st
from spatialdata import SpatialData
from spatialdata.models import PointsModel
from spatialdata.transformations import Affine, Identity, Scale

from stainseq import store
from stainseq.core.grids import morton
from stainseq.errors import MissingError
from stainseq.store import points


def frame(n: int, seed: int = 0, side: float = 3000) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "x": rng.uniform(-side / 2, side / 2, n),
            "y": rng.uniform(0, side, n),
            "z": rng.uniform(0, 10, n).astype(np.float32),
            "feature_name": pd.Categorical(rng.choice([f"G{i}" for i in range(50)], n)),
            "cell_id": rng.choice(["aaaa-1", "bbbb-1", None], n),
            "qv": rng.uniform(0, 40, n).astype(np.float32),
            "id": np.arange(n),
            "overlaps": rng.random(n) < 0.3,
        }
    )


def parsed(data, npartitions=1, transformation=None):
    lazy = data if hasattr(data, "dask") else dd.from_pandas(data, npartitions=npartitions)
    return PointsModel.parse(
        lazy,
        coordinates={a: a for a in "xyz" if a in lazy.columns},
        feature_key="feature_name" if "feature_name" in lazy.columns else None,
        transformations={"um": transformation or Identity()},
    )


def write(path, element):
    return store.create(path, SpatialData(points={"transcripts": element}), step="x", parameters={}, overwrite=True)


@given(st.lists(st.tuples(st.integers(-5000, 5000), st.integers(-5000, 5000)), min_size=1, max_size=50))
@hsettings(max_examples=50, deadline=None)
def test_morton_is_interleaved_bits(cells):
    xy = np.array(cells, dtype=float)
    codes = morton(xy[:, 0] * 8 + 1, xy[:, 1] * 8 + 7, cell=8.0)
    for (x, y), code in zip(cells, codes.tolist(), strict=True):
        a, b = x + 2**30, y + 2**30
        assert code == sum(((a >> i & 1) << (2 * i)) | ((b >> i & 1) << (2 * i + 1)) for i in range(31))


def test_rows_are_sorted_by_tile_in_groups_with_statistics(tmp_path):
    data = frame(200_000)
    opened = write(tmp_path / "s.zarr", parsed(data, 3))
    (file,) = points.data_files(opened.path / "points" / "transcripts")
    meta = pq.ParquetFile(file).metadata
    assert [meta.row_group(i).num_rows for i in range(meta.num_row_groups)] == [65_536] * 3 + [3_392]
    table = pq.read_table(file)
    codes = morton(table["x"].to_numpy(), table["y"].to_numpy(), cell=32.0)
    assert (np.diff(codes.astype(np.int64)) >= 0).all()
    tiles = codes >> np.uint64(6)  # 8 x 8 cells of 32 um: every tile of 256 um is one run of rows
    assert (np.diff(tiles) != 0).sum() + 1 == len(np.unique(tiles))
    for i in range(meta.num_row_groups):
        part = pq.ParquetFile(file).read_row_group(i)
        for j, axis in enumerate("xy"):
            statistics = meta.row_group(i).column(j).statistics
            assert (statistics.min, statistics.max) == (part[axis].to_numpy().min(), part[axis].to_numpy().max())


def test_nothing_is_lost_and_plain_spatialdata_agrees(tmp_path):
    data = frame(100_000)
    opened = write(tmp_path / "s.zarr", parsed(data, 4))
    back = spatialdata.read_zarr(opened.path)["transcripts"]
    got = back.compute().sort_values("id").reset_index(drop=True)
    for column in data:
        left, right = data[column].astype(object), got[column].astype(object)
        assert (left.where(left.notna(), "-") == right.where(right.notna(), "-")).all(), column
    assert got["z"].dtype == np.float32
    assert got["feature_name"].dtype == "category"
    assert got["overlaps"].dtype == bool
    assert back.attrs["spatialdata_attrs"]["feature_key"] == "feature_name"
    box = {"min_coordinate": [-100, 300], "max_coordinate": [200, 500], "target_coordinate_system": "um"}
    plain = spatialdata.bounding_box_query(back, axes=("x", "y"), **box).compute()
    ours = store.read_points_window(opened, "transcripts", (-100, 300, 200, 500))
    assert sorted(plain["id"]) == sorted(ours["id"].to_pylist())


TURN = Affine([[0.2, -0.05, 30], [0.05, 0.2, -11], [0, 0, 1]], ("x", "y"), ("x", "y"))


@pytest.mark.parametrize("transformation", [None, Scale([0.25, 0.25], ("x", "y")), TURN], ids=["um", "px", "turned"])
@pytest.mark.parametrize("stored", [True, False], ids=["stored", "memory"])
@pytest.mark.parametrize("box", [(-100, 300, 200, 500), (-1e9, -1e9, 1e9, 1e9), (9e5, 9e5, 1e6, 1e6), (10, 20, 10, 20)])
def test_window_is_a_naive_filter(tmp_path, transformation, stored, box):
    data = frame(60_000)
    element = parsed(data, 2, transformation)
    sdata = write(tmp_path / "s.zarr", element) if stored else SpatialData(points={"transcripts": element})
    matrix = (transformation or Identity()).to_affine_matrix(("x", "y"), ("x", "y"))
    um = data[["x", "y"]].to_numpy() @ matrix[:2, :2].T + matrix[:2, 2]
    inside = (um[:, 0] >= box[0]) & (um[:, 0] <= box[2]) & (um[:, 1] >= box[1]) & (um[:, 1] <= box[3])
    got = store.read_points_window(sdata, "transcripts", box).to_pandas().sort_values("id")
    assert list(got["id"]) == list(np.flatnonzero(inside))
    assert np.allclose(got[["x", "y"]], um[inside])
    few = store.read_points_window(sdata, "transcripts", box, columns=["feature_name"])
    assert few.column_names == ["feature_name"]
    assert few.num_rows == inside.sum()


def test_window_reads_few_row_groups(tmp_path, monkeypatch):
    """Row groups elsewhere are not touched, since their minima and maxima lie outside the window."""
    opened = write(tmp_path / "s.zarr", parsed(frame(400_000), 2))
    dataset = points.dataset(opened, "transcripts")
    (fragment,) = dataset.get_fragments()
    import pyarrow.dataset as ds

    x, y = ds.field("x"), ds.field("y")
    near = fragment.split_by_row_group((x >= 0) & (x <= 100) & (y >= 100) & (y <= 200))
    assert len(fragment.row_groups) == 7
    assert len(near) <= 2


def test_sorting_out_of_core_gives_the_same_bytes(tmp_path, monkeypatch):
    data = frame(50_000)
    want = write(tmp_path / "a.zarr", parsed(data))
    monkeypatch.setattr(points, "_IN_MEMORY_ROWS", 3_000)
    monkeypatch.setattr(points, "_GROUPS_PER_FILE", 64)
    for name, npartitions, most in (("b", 7, 2048), ("c", 3, 2)):
        monkeypatch.setattr(points, "_MOST_BUCKETS", most)
        got = write(tmp_path / f"{name}.zarr", parsed(data, npartitions))
        assert store.fingerprint_of(got, "transcripts") == store.fingerprint_of(want, "transcripts")
        one, two = (points.data_files(s.path / "points" / "transcripts") for s in (want, got))
        assert [f.read_bytes() for f in one] == [f.read_bytes() for f in two]
        assert [p.name for p in (tmp_path).iterdir() if p.name.startswith(".")] == []


def test_several_files(tmp_path, monkeypatch):
    monkeypatch.setattr(points, "ROW_GROUP", 1000)
    monkeypatch.setattr(points, "_GROUPS_PER_FILE", 2)
    monkeypatch.setattr(points, "sorted_tables", _small_groups(points.sorted_tables))
    data = frame(23_456)
    opened = write(tmp_path / "s.zarr", parsed(data))
    files = points.data_files(opened.path / "points" / "transcripts")
    assert [f.name for f in files] == [f"part.{i}.parquet" for i in range(12)]
    got = store.read_points_window(opened, "transcripts", (-1e9, -1e9, 1e9, 1e9))
    codes = morton(got["x"].to_numpy(), got["y"].to_numpy(), cell=32.0)
    assert (np.diff(codes.astype(np.int64)) >= 0).all()
    assert sorted(spatialdata.read_zarr(opened.path)["transcripts"]["id"].compute()) == list(range(len(data)))
    assert store.fingerprint_of(opened, "transcripts") == store.fingerprint_of(
        SpatialData(points={"transcripts": parsed(data)}), "transcripts"
    )


def _small_groups(whole):
    def tables(*arguments, **options):
        for table in whole(*arguments, **options):
            for start in range(0, table.num_rows, 1000):
                yield table.slice(start, 1000)

    return tables


def test_partitions_with_their_own_categories(tmp_path):
    def part(i: int) -> pd.DataFrame:
        data = frame(1000, seed=i)
        data.index += 1000 * i
        data["feature_name"] = pd.Categorical([f"P{i}_{j % 7}" for j in range(1000)])
        return data

    meta = part(0).iloc[:0]
    meta["feature_name"] = meta["feature_name"].astype(str).astype("category")
    lazy = dd.from_map(part, [0, 1, 2], meta=meta)
    lazy["feature_name"] = lazy["feature_name"].cat.as_unknown()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("spatialdata.models.models.logger.warning", lambda *a, **k: None)
        opened = write(tmp_path / "s.zarr", parsed(lazy))
    got = spatialdata.read_zarr(opened.path)["transcripts"].compute()
    want = pd.concat([part(i).astype({"feature_name": str}) for i in range(3)])
    key = ["x", "y"]
    assert list(got.sort_values(key)["feature_name"].astype(str)) == list(want.sort_values(key)["feature_name"])


@pytest.mark.parametrize("n", [65_536, 131_072, 65_537])
def test_full_row_groups(tmp_path, n):
    opened = write(tmp_path / "s.zarr", parsed(frame(n)))
    (file,) = points.data_files(opened.path / "points" / "transcripts")
    meta = pq.ParquetFile(file).metadata
    assert all(meta.row_group(i).num_rows for i in range(meta.num_row_groups))
    assert meta.num_rows == n


def test_categories_of_numbers_stay_numbers(tmp_path):
    data = frame(50).assign(cluster=pd.Categorical(np.arange(50) % 3))
    got = write(tmp_path / "s.zarr", parsed(data))["transcripts"].compute().sort_values("id")
    assert list(got["cluster"].astype(int)) == [i % 3 for i in range(50)]


def test_what_is_missing(tmp_path):
    opened = write(tmp_path / "s.zarr", parsed(frame(100)))
    with pytest.raises(MissingError, match="no points named 'dots'; one of: transcripts"):
        store.read_points_window(opened, "dots", (0, 0, 1, 1))
    with pytest.raises(MissingError, match="no column 'gene'; one of: x, y"):
        store.read_points_window(opened, "transcripts", (0, 0, 1, 1), columns=["gene"])
