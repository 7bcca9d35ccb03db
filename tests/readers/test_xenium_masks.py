"""cells.zarr.zip: the masks that the run counted by, their ids, and outlines where the tables are absent."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import shapely
import zarr

import stainseq as ss
from stainseq import regions
from stainseq.datasets import _xenium_run
from stainseq.datasets._xenium import VERSIONS
from stainseq.errors import FormatError, InputError
from stainseq.readers._masks import cell_ids


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("masks")
    for v in VERSIONS:
        ss.datasets.xenium(root / v, version=v, n_genes=5, he=False)
    return {v: root / v for v in VERSIONS}


@pytest.fixture
def bundle(bundles: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundles["3.0"], tmp_path / "b"))


def raw_mask(folder: Path, kind: int) -> np.ndarray:
    with zarr.storage.ZipStore(folder / "cells.zarr.zip", mode="r") as store:
        return np.asarray(zarr.open_group(store, mode="r")["masks"][str(kind)])  # type: ignore[index]


@pytest.mark.parametrize("version", VERSIONS)
def test_masks_of_every_version_count_as_the_run_did(bundles: dict[str, Path], tmp_path: Path, version: str) -> None:
    sdata = ss.io.convert(bundles[version], tmp_path / "x.zarr")
    for kind, name in ((0, "nuclei_labels"), (1, "cells_labels")):
        stored = np.asarray(sdata[name]["scale0"]["image"].data)
        assert stored.dtype == np.uint32
        np.testing.assert_array_equal(stored, raw_mask(bundles[version], kind))
    vendor = sdata["counts_cells"]
    ours = ss.pp.aggregate(sdata, region="cells_labels")
    assert set(ours.obs_names) == set(vendor.obs_names)
    assert (ours[vendor.obs_names, vendor.var_names].X != vendor.X).nnz == 0
    np.testing.assert_array_equal(ours.obs["instance_id"], vendor.obs["label"][ours.obs_names])
    nuclei = ss.pp.aggregate(sdata, region="nuclei_labels")
    assert list(nuclei.obs_names) == list(sdata["nuclei"].index)
    if version >= "2":
        assert nuclei.obs_names.str.contains(":").any()
    raw = pd.read_parquet(bundles[version] / "transcripts.parquet")
    names = raw["feature_name"].map(lambda v: v.decode() if isinstance(v, bytes) else v)
    wanted = (raw["qv"] >= 20) & names.isin(list(vendor.var_names))
    assert nuclei.X.sum() == raw.loc[wanted, "overlaps_nucleus"].sum()


def test_each_label_lies_on_its_outline(bundles: dict[str, Path]) -> None:
    sdata = ss.io.read(bundles["3.0"])
    for kind, name in ((0, "nuclei"), (1, "cells")):
        mask = raw_mask(bundles["3.0"], kind)
        shapes = sdata[name]
        x, y = np.floor(shapely.get_coordinates(shapes.geometry.centroid.to_numpy()) / 0.2125).astype(int).T
        assert (mask[y, x] == shapes["label"]).mean() > 0.97  # small second nuclei may lie under the first
        area = np.bincount(mask.ravel(), minlength=mask.max() + 1)[shapes["label"]] * 0.2125**2
        bounds = shapes.geometry.bounds.to_numpy()
        whole = (bounds.min(axis=1) > 0) & (bounds.max(axis=1) < mask.shape[0] * 0.2125)
        assert np.corrcoef(area[whole], shapes.geometry.area[whole])[0, 1] > 0.98


@pytest.mark.parametrize("version", ["1.0", "3.0"])
def test_outlines_of_the_masks_where_tables_are_absent(bundles: dict[str, Path], tmp_path: Path, version: str) -> None:
    folder = Path(shutil.copytree(bundles[version], tmp_path / "b"))
    whole = ss.io.read(folder)
    for file in folder.glob("*_boundaries.*"):
        file.unlink()
    bare = ss.io.read(folder)
    for name in ("cells", "nuclei"):
        assert bare[name].geometry.geom_type.eq("Polygon").all()
        pd.testing.assert_frame_equal(bare[name].drop(columns="geometry"), whole[name].drop(columns="geometry"))
        assert shapely.equals(bare[name].geometry.to_numpy(), whole[name].geometry.to_numpy()).all()


def test_masks_are_optional(bundle: Path) -> None:
    assert not ss.io.read(bundle, masks=False).labels
    shutil.unpack_archive(bundle / "cells.zarr.zip", bundle / "cells.zarr", "zip")
    (bundle / "cells.zarr.zip").unlink()
    unpacked = ss.io.read(bundle)
    assert sorted(unpacked.labels) == ["cells_labels", "nuclei_labels"]
    shutil.rmtree(bundle / "cells.zarr")
    bare = ss.io.read(bundle)
    assert not bare.labels
    # The tables say the labels as well.
    assert (bare["cells"]["label"] == unpacked["cells"]["label"]).all()


def test_one_mask_of_an_imported_segmentation(bundle: Path) -> None:
    shutil.unpack_archive(bundle / "cells.zarr.zip", bundle / "cells.zarr", "zip")
    (bundle / "cells.zarr.zip").unlink()
    (bundle / "nucleus_boundaries.parquet").unlink()
    root = zarr.open_group(bundle / "cells.zarr", mode="r+")
    for old, new in (("masks/1", "masks/0"), ("polygon_sets/1", "polygon_sets/0")):
        shutil.rmtree(bundle / "cells.zarr" / new)
        (bundle / "cells.zarr" / old).rename(bundle / "cells.zarr" / new)
    root.attrs["polygon_set_names"] = ["cell"]
    sdata = ss.io.read(bundle)
    assert list(sdata.labels) == ["cells_labels"]
    assert list(sdata.shapes) == ["cells"]
    assert len(regions.get(sdata, "cells_labels")) == len(sdata["cells"])


def test_nuclei_without_numbers_come_apart(bundle: Path) -> None:
    """The first files of version 2: two nuclei of a cell follow each other without a number."""
    whole = ss.io.read(bundle)["nuclei"]
    frame = pd.read_parquet(bundle / "nucleus_boundaries.parquet").drop(columns="label_id")
    frame.to_parquet(bundle / "nucleus_boundaries.parquet")
    nuclei = ss.io.read(bundle)["nuclei"]
    pd.testing.assert_frame_equal(nuclei.drop(columns="geometry"), whole.drop(columns="geometry"))
    assert nuclei.geometry.geom_equals(whole.geometry).all()
    # Without masks they are counted within their cell.
    bare = ss.io.read(bundle, masks=False)["nuclei"]
    several = bare["cell_id"].duplicated(keep=False)
    assert several.any()
    assert set(bare.index[several].str.rsplit(":").str[-1]) == {"1", "2"}


def test_damaged_masks(bundle: Path, tmp_path: Path) -> None:
    file = bundle / "cells.zarr.zip"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FormatError, match=r"masks cannot be read .*cells.zarr.zip.*masks=false"):
        ss.io.convert(bundle, tmp_path / "x.zarr")
    assert not (tmp_path / "x.zarr").exists()
    assert not ss.io.read(bundle, masks=False).labels
    file.write_bytes(whole)
    shutil.unpack_archive(file, bundle / "cells.zarr", "zip")
    file.unlink()
    chunk = bundle / "cells.zarr" / "masks" / "1" / "1.0"
    chunk.write_bytes(chunk.read_bytes()[:20])
    with pytest.raises(FormatError, match="masks cannot be read"):
        ss.io.convert(bundle, tmp_path / "x.zarr")
    shutil.rmtree(bundle / "cells.zarr" / "cell_id")
    with pytest.raises(FormatError, match="no masks or no cell ids"):
        ss.io.read(bundle)


def test_masks_of_another_frame(bundle: Path) -> None:
    shutil.unpack_archive(bundle / "cells.zarr.zip", bundle / "cells.zarr", "zip")
    (bundle / "cells.zarr.zip").unlink()
    matrix = zarr.open_group(bundle / "cells.zarr", mode="r+")["masks/homogeneous_transform"]
    matrix[:] = np.diag([1 / 0.3, 1 / 0.3, 1, 1])  # type: ignore[index]
    with pytest.raises(InputError, match=r"of the cells lie on their own label.*masks=false"):
        ss.io.read(bundle)


def test_slides_are_drawn_in_strips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However few rows of superpixels at a time: what is told, listed and counted is the same slide."""
    monkeypatch.setattr(_xenium_run, "_STRIP_COUNTS", 9000)
    ss.datasets.xenium(tmp_path / "b", n_genes=5, he=False)
    raw = pd.read_parquet(tmp_path / "b" / "transcripts.parquet")
    told = json.loads((tmp_path / "b" / "experiment.xenium").read_text())
    assert told["num_transcripts"] == len(raw) == raw["transcript_id"].nunique()
    assert told["num_transcripts_high_quality"] == (raw["qv"] >= 20).sum()
    assert np.diff(raw["y_location"] // (8 * 7)).min() >= 0  # seven rows a strip
    cells = pd.read_parquet(tmp_path / "b" / "cells.parquet").set_index("cell_id")
    mine = raw[(raw["cell_id"] != "UNASSIGNED") & (raw["qv"] >= 20)]
    pd.testing.assert_series_equal(
        mine.groupby("cell_id").size().reindex(cells.index, fill_value=0), cells["total_counts"], check_names=False
    )


def test_ids_as_the_vendor_writes_them() -> None:
    stored = np.array([[1437536272, 1], [0, 12], [0xFFFFFFFF, 1]], dtype=np.uint32)
    assert cell_ids(stored).tolist() == ["ffkpbaba-1", "aaaaaaaa-12", "pppppppp-1"]
    assert cell_ids(np.array([1, 20], dtype=np.uint32)).tolist() == ["1", "20"]
