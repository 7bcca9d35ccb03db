"""Visium folders of every Space Ranger, complete and in parts."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest
from spatialdata.transformations import get_transformation

import stainseq as ss
from stainseq.errors import FormatError, InputError, MissingError, ScaleError


def _check(sdata: Any, truth: Any, *, rel: float = 1e-4) -> Any:
    """Everything that holds for any spot slide; returns the table."""
    table, facts = sdata["counts_spots"], sdata.attrs["stainseq"]
    full = facts.get("mpp_fullres", facts["mpp"])
    assert full == pytest.approx(truth.mpp, rel=rel)
    assert list(table.obs_names) == truth.ids == list(sdata["spots"].index) == list(table.obs["instance_id"])
    np.testing.assert_array_equal(table.X.toarray(), truth.counts)
    np.testing.assert_allclose(table.obsm["spatial"], truth.xy_px * full, rtol=1e-9)
    centres = np.column_stack([sdata["spots"].geometry.x, sdata["spots"].geometry.y])
    np.testing.assert_array_equal(centres, table.obsm["spatial"])
    assert table.X.dtype == np.int32
    assert list(table.var_names) == ["ACTB", "ERBB2", "KRT5", "MALAT1", "SILENT", "ACTB-1"]
    assert list(table.var["symbol"])[-1] == "ACTB"
    assert table.X[:, 4].sum() == 0
    return table


@pytest.mark.parametrize(
    ("version", "matrix", "positions"),
    [
        (1, "h5", None),
        (1, "mtx", "list.txt"),
        (2, "h5", None),
        (2, "mtx", None),
        (3, "h5", "parquet"),
    ],
)
def test_every_version(tmp_path: Path, make: ModuleType, version: int, matrix: str, positions: str | None) -> None:
    truth = make.visium(tmp_path / "run" / "outs", version=version, matrix=matrix, positions=positions)
    sdata = ss.io.read(tmp_path / "run")
    table = _check(sdata, truth)
    facts = sdata.attrs["stainseq"]
    assert facts["slide"] == "run"
    assert facts["image"] == "hires"
    assert facts["mpp"] == pytest.approx(truth.mpp / 0.05, rel=1e-4)
    assert facts["spot_diameter_fullres_um"] == pytest.approx(65, rel=1e-4)
    assert facts["frame"]["spots_on_tissue"] > 0.95
    assert table.var["gene_id"].tolist() == [f"ENSG{i:011d}" for i in range(6)]
    assert sdata["spots"]["radius"].unique() == [27.5]
    assert sdata["he"].dtype == np.uint8
    for element in ("he", "spots"):
        assert set(get_transformation(sdata[element], get_all=True)) == {"global", "um", "fullres"}
    scale = get_transformation(sdata["he"], to_coordinate_system="um").to_affine_matrix(("x", "y"), ("x", "y"))
    assert scale[0, 0] == pytest.approx(facts["mpp"])


def test_spots_lie_where_the_picture_has_them(tmp_path: Path, make: ModuleType) -> None:
    """Through "global", a spot's pixel is its full-resolution pixel times the scale factor."""
    truth = make.visium(tmp_path / "a")
    sdata = ss.io.read(tmp_path / "a")
    to_px = get_transformation(sdata["spots"], to_coordinate_system="global").to_affine_matrix(("x", "y"), ("x", "y"))
    px = sdata["counts_spots"].obsm["spatial"] @ to_px[:2, :2].T
    np.testing.assert_allclose(px, truth.xy_px * 0.05, rtol=1e-6)


def test_cytassist_with_lowres_only(tmp_path: Path, make: ModuleType) -> None:
    truth = make.visium(tmp_path / "a", version=3, images=("lowres",), cytassist=True)
    sdata = ss.io.read(tmp_path / "a")
    _check(sdata, truth)
    assert sdata.attrs["stainseq"]["image"] == "lowres"
    assert sdata.attrs["stainseq"]["cytassist"] is True
    assert sdata.attrs["stainseq"]["software"] == "spaceranger-3.0.0"


def test_no_picture_at_all(tmp_path: Path, make: ModuleType) -> None:
    """Pictures with drawn-on fiducials are no H&E by default, but may be asked for."""
    truth = make.visium(tmp_path / "a", images=("aligned_fiducials",))
    sdata = ss.io.read(tmp_path / "a")
    _check(sdata, truth)
    assert not sdata.images
    asked = ss.io.read(tmp_path / "a", image="aligned_fiducials")
    assert asked["he"].shape[1:] == (800, 760)
    with pytest.raises(MissingError, match="no hires picture"):
        ss.io.read(tmp_path / "a", image="hires")


def test_full_resolution_picture_and_a_downscaled_one_by_mistake(tmp_path: Path, make: ModuleType) -> None:
    truth = make.visium(tmp_path / "a", mpp=4.0, hires=0.25)
    full = make.write_image(tmp_path / "full.tif", make.picture(2000, 1900), "tiff")
    sdata = ss.io.read(tmp_path / "a", image=full)
    _check(sdata, truth)
    assert sdata["he"].shape == (3, 2000, 1900)
    assert sdata.attrs["stainseq"]["mpp"] == pytest.approx(4, rel=1e-4)
    hires = make.write_image(tmp_path / "other_name.png", make.picture(500, 475))
    with pytest.raises(ScaleError, match=r"inside the image.*coordinates times 0\.2.*tissue_hires_scalef"):
        ss.io.read(tmp_path / "a", image=hires)
    assert ss.io.read(tmp_path / "a", image=hires, image_scale=0.25)["he"].shape == (3, 500, 475)
    assert ss.io.read(tmp_path / "a", image=hires, check_frame=False)["he"].shape == (3, 500, 475)


def test_raw_matrix_keeps_spots_off_tissue_on_request(tmp_path: Path, make: ModuleType) -> None:
    truth = make.visium(tmp_path / "a", kind="raw")
    sdata = ss.io.read(tmp_path / "a")
    _check(sdata, truth)
    assert any("no filtered matrix" in n for n in sdata["counts_spots"].uns["stainseq_read"]["notes"])
    everything = ss.io.read(tmp_path / "a", matrix="raw", off_tissue=True)["counts_spots"]
    assert everything.n_obs == 4992
    assert int(everything.obs["in_tissue"].sum()) == len(truth.ids)


def test_prefixed_files_as_in_geo(tmp_path: Path, make: ModuleType) -> None:
    truth = make.visium(tmp_path, prefix="GSM1_A_")
    for source in (tmp_path, tmp_path / "GSM1_A", tmp_path / "GSM1_A_filtered_feature_bc_matrix.h5"):
        _check(ss.io.read(source), truth)
    assert ss.io.read(tmp_path / "GSM1_A").attrs["stainseq"]["slide"] == "GSM1_A"


def test_antibodies_are_left_out_and_said(tmp_path: Path, make: ModuleType) -> None:
    make.visium(tmp_path / "a", antibodies=True)
    table = ss.io.read(tmp_path / "a")["counts_spots"]
    assert "CD3" not in table.var_names
    assert table.n_vars == 5
    assert any("1 Antibody Capture" in n for n in table.uns["stainseq_read"]["notes"])


def test_labels_by_barcode(tmp_path: Path, make: ModuleType) -> None:
    truth = make.visium(tmp_path / "a")
    half = truth.ids[::2]
    labels = tmp_path / "layers.csv"
    make.write_rows(labels, ["barcode", "layer", "score (a/b)"], [[b, "L1", 0.5] for b in reversed(half)], sep=",")
    obs = ss.io.read(tmp_path / "a", obs=labels)["counts_spots"].obs
    assert obs["layer"].notna().sum() == len(half)
    assert obs.loc[half[3], "layer"] == "L1"
    assert "score_a_b" in obs
    labels.write_text("barcode,layer\nx,1\n")
    with pytest.raises(InputError, match="no id in common"):
        ss.io.read(tmp_path / "a", obs=labels)


def test_positions_and_scale_factors_of_different_runs(tmp_path: Path, make: ModuleType) -> None:
    truth = make.visium(tmp_path / "a")
    path = tmp_path / "a" / "spatial" / "scalefactors_json.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "spot_diameter_fullres": 30.0}))
    with pytest.raises(ScaleError, match="contradict"):
        ss.io.read(tmp_path / "a")
    assert ss.io.read(tmp_path / "a", mpp=truth.mpp).attrs["stainseq"]["mpp_from"] == "--mpp"


def _edit(path: Path, change: Any) -> None:
    table = pd.read_csv(path, dtype=str)
    change(table).to_csv(path, index=False)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (lambda t: pd.concat([t, t.iloc[[7, 9]]]), InputError, r"2 duplicate ids in the positions"),
        (lambda t: t.assign(barcode=t.barcode.where(t.index != 3, "")), InputError, r"1 missing ids.*rows 4"),
        (lambda t: t.assign(in_tissue="0"), InputError, "an empty slide"),
        (lambda t: t.assign(pxl_col_in_fullres="NaN"), InputError, "spots without coordinates"),
        (lambda t: t.drop(columns=["array_row"]), MissingError, "no column array_row"),
        (lambda t: t.assign(barcode="x" + t.barcode), InputError, "no id in common"),
        (lambda t: t[t.in_tissue == "1"].head(1), ScaleError, r"cannot be fitted from one spot.*--mpp"),
    ],
)
def test_bad_positions(tmp_path: Path, make: ModuleType, change: Any, error: type, match: str) -> None:
    make.visium(tmp_path / "a")
    _edit(tmp_path / "a" / "spatial" / "tissue_positions.csv", change)
    with pytest.raises(error, match=match):
        ss.io.read(tmp_path / "a")


def test_truncated_and_odd_matrices(tmp_path: Path, make: ModuleType) -> None:
    import h5py

    make.visium(tmp_path / "a")
    path = tmp_path / "a" / "filtered_feature_bc_matrix.h5"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FormatError, match=r"truncated.*filtered_feature_bc_matrix"):
        ss.io.read(tmp_path / "a")
    path.write_bytes(whole)
    with h5py.File(path, "a") as h5:
        h5["matrix/data"][0] = -4
    with pytest.raises(InputError, match="negative"):
        ss.io.read(tmp_path / "a")
    with h5py.File(path, "a") as h5:
        h5["matrix/data"][0] = 4
        h5["matrix/barcodes"][1] = h5["matrix/barcodes"][0]
    with pytest.raises(InputError, match="1 duplicate ids in the counts"):
        ss.io.read(tmp_path / "a")
    make.visium(tmp_path / "b", matrix="mtx")
    (tmp_path / "b" / "filtered_feature_bc_matrix" / "features.tsv.gz").unlink()
    with pytest.raises(FormatError, match=r"no features\.tsv"):
        ss.io.read(tmp_path / "b")


def test_visium_hd_is_not_taken_for_visium(tmp_path: Path, make: ModuleType) -> None:
    make.visium(tmp_path / "square_008um")
    path = tmp_path / "square_008um" / "spatial" / "scalefactors_json.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "bin_size_um": 8.0}))
    with pytest.raises(FormatError, match="visium-hd"):
        ss.io.read(tmp_path / "square_008um", platform="visium")
    assert ss.registry.load("readers", "visium").sniff(tmp_path / "square_008um") is None
