"""STimage-1K4M: tree and flat layout, odd images, every technology, the table of slides."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
import tifffile

import stainseq as ss
from stainseq.cohort import from_stimage
from stainseq.errors import FormatError, InputError, MissingError, ScaleError
from stainseq.readers.stimage import read_meta

SLIDE = "Human_Breast_Someone_01022020_ST_A1"


def _check(sdata: object, truth: object, *, rel: float = 1e-3) -> object:
    table, facts = sdata["counts_spots"], sdata.attrs["stainseq"]  # type: ignore[index, attr-defined]
    assert facts["mpp"] == pytest.approx(truth.mpp, rel=rel)  # type: ignore[attr-defined]
    assert list(table.obs_names) == truth.ids  # type: ignore[attr-defined]
    np.testing.assert_array_equal(table.X.toarray(), truth.counts)  # type: ignore[attr-defined]
    np.testing.assert_allclose(table.obsm["spatial"], truth.xy_px * facts["mpp"], rtol=1e-9)  # type: ignore[attr-defined]
    return table


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize(
    "slide", [SLIDE, "GSE1_GSM2", "Mouse_Brain_10X_03292024_Visium", "Human_Lung_X_01012021_Visium_b"]
)
def test_layouts_and_technologies(tmp_path: Path, make: ModuleType, flat: bool, slide: str) -> None:
    truth = make.stimage(tmp_path, slide=slide, flat=flat)
    sdata = ss.io.read(truth.path)
    _check(sdata, truth)
    facts = sdata.attrs["stainseq"]
    assert facts["platform"] == "stimage"
    assert facts["slide"] == slide
    visium = "Visium" in slide
    assert facts["tech"] == ("Visium" if visium else "ST")
    assert sdata["spots"]["radius"].unique() == [27.5 if visium else 50.0]


def test_every_way_of_naming_a_slide(tmp_path: Path, make: ModuleType) -> None:
    truth = make.stimage(tmp_path)
    make.stimage(tmp_path, slide="GSE1_GSM2")
    make.stimage(tmp_path, slide="Mouse_Brain_10X_03292024_Visium")
    tree = tmp_path / "ST"
    for source in (
        tmp_path / SLIDE,
        tree / SLIDE,
        tree / "image" / SLIDE,
        tree / "image" / f"{SLIDE}.png",
        tree / "coord" / f"{SLIDE}_coord.csv",
        tree / "gene_exp" / f"{SLIDE}_count.csv",
    ):
        assert ss.io.sniff(source) == ("stimage", "STimage-1K4M slide")
        _check(ss.io.read(source), truth)
    assert ss.io.sniff(tmp_path) == ("stimage", "STimage-1K4M (3 slides)")
    _check(ss.io.read(tmp_path, slide=SLIDE), truth)
    with pytest.raises(FormatError, match="3 slides"):
        ss.io.read(tmp_path)
    with pytest.raises(MissingError, match="no slide 'other'"):
        ss.io.read(tmp_path, slide="other")


@pytest.mark.parametrize("form", ["png", "jpeg", "tiff", "rgba", "chw", "none"])
def test_images_are_whatever_they_are(tmp_path: Path, make: ModuleType, form: str) -> None:
    """All are called .png."""
    truth = make.stimage(tmp_path, kind="jpeg" if form in ("rgba", "chw", "none") else form)
    path = tmp_path / "ST" / "image" / f"{SLIDE}.png"
    rgb = make.picture(int(38 * 200 / 6.25), int(36 * 200 / 6.25))
    if form == "rgba":
        make.write_image(path, np.dstack([rgb, np.full(rgb.shape[:2], 255, np.uint8)]))
    elif form == "chw":
        tifffile.imwrite(path, rgb.transpose(2, 0, 1), photometric="minisblack")
    elif form == "none":
        path.unlink()
    sdata = ss.io.read(truth.path)
    _check(sdata, truth)
    assert bool(sdata.images) == (form != "none")
    if form != "none":
        assert sdata["he"].shape == (3, *rgb.shape[:2])
    if form in ("rgba", "chw", "tiff", "png"):
        np.testing.assert_array_equal(sdata["he"].values, rgb.transpose(2, 0, 1))


def test_the_2k_array_is_told_by_its_places(tmp_path: Path, make: ModuleType) -> None:
    """As GSM4284316, whose r was made for 200 um: places of the 2k array, 150 um from neighbour to neighbour."""
    truth = make.stimage(tmp_path, slide="GSE144239_GSM4284316")
    coord = pd.read_csv(truth.path, index_col=0)
    x, y = (np.array([int(i.rsplit("_", 1)[1].split("x")[k]) for i in coord.index]) for k in (0, 1))
    keep = (x + y) % 2 == 0
    coord = coord[keep].assign(xaxis=(x[keep] + 0.7) * 100.26 / 0.6, yaxis=(y[keep] + 0.7) * 111.57 / 0.6, r=45.13)
    coord.to_csv(truth.path)
    sdata = ss.io.read(truth.path, image="none")
    facts = sdata.attrs["stainseq"]
    assert facts["array"] == "2k"
    assert facts["mpp"] == pytest.approx(0.6, rel=1e-4)
    assert sdata["spots"]["radius"].unique() == [55.0]
    assert any("r is not used" in n for n in sdata["counts_spots"].uns["stainseq_read"]["notes"])


def test_visium_hd_bins(tmp_path: Path, make: ModuleType) -> None:
    truth = make.stimage(tmp_path, slide="Mouse_Brain_10X_03292024_VIsiumHD")
    coord = pd.read_csv(truth.path, index_col=0)
    row, col = np.divmod(np.arange(len(coord)), 40)
    turn = np.radians(0.9)
    xy = np.column_stack([col * 7.3, row * 7.3]) @ np.array(
        [[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]]
    )
    coord.assign(xaxis=xy[:, 0], yaxis=xy[:, 1], r=3.65).to_csv(truth.path)
    sdata = ss.io.read(truth.path, image="none")
    assert sdata.attrs["stainseq"]["tech"] == "VisiumHD"
    assert sdata.attrs["stainseq"]["mpp"] == pytest.approx(2 / 7.3, rel=1e-4)


def test_annotation(tmp_path: Path, make: ModuleType) -> None:
    truth = make.stimage(tmp_path)
    ids = truth.ids
    rows = [
        [ids[0], "tumour"],
        [ids[0], "other"],
        [ids[1], "undetermined"],
        [ids[2], "Exclude"],
        [ids[3], ""],
        [ids[4], "fat"],
    ]
    (tmp_path / "annotation").mkdir()
    make.write_rows(tmp_path / "annotation" / f"{SLIDE}_anno.csv", ["", "V2"], rows, sep=",")
    table = _check(ss.io.read(truth.path), truth)
    labels = table.obs["annotation"]  # type: ignore[attr-defined]
    assert labels[ids[0]] == "tumour"
    assert labels[ids[4]] == "fat"
    assert labels.notna().sum() == 2
    notes = table.uns["stainseq_read"]["notes"]  # type: ignore[attr-defined]
    assert any(n.startswith("1 repeated ids") for n in notes)


def test_x_before_y_is_read_by_name(tmp_path: Path, make: ModuleType) -> None:
    truth = make.stimage(tmp_path)
    coord = pd.read_csv(truth.path, index_col=0)
    coord[["r", "xaxis", "yaxis"]].to_csv(truth.path)
    _check(ss.io.read(truth.path), truth)


def test_exchanged_axes_are_found_out(tmp_path: Path, make: ModuleType) -> None:
    """A picture twice as wide as high, coordinates with x and y exchanged."""
    truth = make.stimage(tmp_path)
    coord = pd.read_csv(truth.path, index_col=0)
    wide = make.picture(600, 2400)
    path = make.write_image(tmp_path / "ST" / "image" / f"{SLIDE}.png", wide)
    x, y = np.meshgrid(np.linspace(400, 2000, 33), np.linspace(120, 480, 9))
    n = min(len(coord), x.size)
    good = coord.iloc[:n].assign(xaxis=x.ravel()[:n], yaxis=y.ravel()[:n])
    good.rename(columns={"xaxis": "yaxis", "yaxis": "xaxis"}).to_csv(truth.path)
    with pytest.raises(ScaleError, match="x and y exchanged"):
        ss.io.read(path, mpp=5.0)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (lambda t: pd.concat([t, t.iloc[:1]]), InputError, "1 duplicate ids in the coordinates"),
        (lambda t: t.assign(xaxis=np.nan), InputError, "spots without coordinates"),
        (lambda t: t.iloc[:1], ScaleError, "one spot"),
        (lambda t: t.iloc[:0], InputError, "an empty slide"),
    ],
)
def test_bad_coordinates(tmp_path: Path, make: ModuleType, change: object, error: type, match: str) -> None:
    truth = make.stimage(tmp_path)
    change(pd.read_csv(truth.path, index_col=0)).to_csv(truth.path)  # type: ignore[operator]
    with pytest.raises(error, match=match):
        ss.io.read(truth.path)


def test_a_lattice_of_the_wrong_technology(tmp_path: Path, make: ModuleType) -> None:
    truth = make.stimage(tmp_path, slide="Human_Lung_X_01012021_Visium_b")
    with pytest.raises(ScaleError, match="60 degrees where VisiumHD has 90"):
        ss.io.read(truth.path, tech="VisiumHD")
    with pytest.raises(MissingError, match="one of: ST, Visium, VisiumHD"):
        ss.io.read(truth.path, tech="Xenium")


HEADER = [
    "slide",
    "species",
    "tissue",
    "pmid",
    "title",
    "abstract",
    "keywords",
    "involve_cancer",
    "tech",
    "spot_num",
    "gene_num",
]


@pytest.mark.parametrize("sep", [",", "\t"])
def test_meta_table_in_both_forms(tmp_path: Path, make: ModuleType, sep: str) -> None:
    truth = make.stimage(tmp_path)
    rows = [
        [SLIDE, "human", "breast", "1,2", 'A "title", with comma', "", "", "True", "ST", "1", "6"],
        ["GSE1_GSM2", "mouse", "brain", "", "", "", "", "False", "visium", "3", "4"],
        ["GSE1_GSM3", "mouse", "brain", "", "", "", "", "False", "VisiumHD", "3", "4"],
    ]
    (tmp_path / "meta").mkdir()
    path = make.write_rows(tmp_path / "meta" / "meta_all_gene.csv", HEADER, rows, sep=sep)
    meta = read_meta(path)
    assert meta["involve_cancer"].tolist() == [True, False, False]
    assert meta["pmid"].tolist() == ["1,2", "", ""]
    assert meta["tech"].tolist() == ["ST", "Visium", "VisiumHD"]
    cohort = from_stimage(path)
    assert len(cohort) == 3
    assert cohort.table["patient"].tolist() == ["Human_Breast_Someone_01022020", "GSE1", "GSE1"]
    present = from_stimage(path, present_only=True)
    assert present.table["slide"].tolist() == [SLIDE]
    sdata = present.open(SLIDE)
    _check(sdata, truth)
    assert sdata.attrs["stainseq"]["tissue"] == "breast"
    assert ss.io.read(truth.path).attrs["stainseq"]["species"] == "human"


def test_meta_table_must_be_one(tmp_path: Path) -> None:
    (tmp_path / "meta.csv").write_text("slide,species\na,human\n")
    with pytest.raises(MissingError, match="no column tissue"):
        from_stimage(tmp_path / "meta.csv")
