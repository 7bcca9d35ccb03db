"""Pixel2Gene folders: bins on a grid, spots off it, H&E alone, and what cannot be right."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from spatialdata.transformations import Identity

import stainseq as ss
from stainseq import regions
from stainseq.errors import FormatError, InputError, MissingError, ScaleError, StainseqError
from stainseq.readers import superpixel

PIXEL = 8 / 29.22
"""Of the folder that Pixel2Gene ships: 0.27379 um/px, bins of 29.22 px."""


def folder(tmp_path: Path, *, parquet: bool = False, pixels: int = 1200, **places) -> Path:
    """As Pixel2Gene's scripts write it from Xenium: centres at (bin + 1/2) x 29.22 px, radius 0."""
    rng = np.random.default_rng(0)
    out = tmp_path / "CRC-P2"
    out.mkdir()
    cv2.imwrite(str(out / "CRC-P2-he-raw.jpg"), rng.integers(100, 250, (pixels, pixels, 3), dtype=np.uint8))
    y, x = (v.ravel() for v in np.mgrid[3:23, 5:35])
    kept = rng.random(len(x)) < 0.9
    x, y = x[kept], y[kept]
    ids = [f"{a}_{b}" for a, b in zip(x, y, strict=True)]
    counts = pd.DataFrame(rng.poisson(1.5, (len(x), 4)), index=ids, columns=["A", "B", "C", "A"])
    at = pd.DataFrame({"x": (x + 0.5) * 29.22, "y": (y + 0.5) * 29.22}, index=ids)
    if places.get("scattered"):
        at += rng.uniform(-9, 9, at.shape)
    at = at.sample(frac=1, random_state=0)  # rows are joined by id, not by place
    if parquet:
        counts.columns = ["A", "B", "C", "D"]
        counts.to_parquet(out / "CRC-P2-cnts.parquet")
        at.to_parquet(out / "CRC-P2-locs-raw.parquet")
    else:
        counts.to_csv(out / "CRC-P2-cnts.tsv", sep="\t")
        at.to_csv(out / "CRC-P2-locs-raw.tsv", sep="\t")
    (out / "CRC-P2-pixel-size-raw.txt").write_text(f"{PIXEL}\n")
    (out / "CRC-P2-pixel-size.txt").write_text("0.5\n")
    (out / "CRC-P2-radius-raw.txt").write_text(f"{places.get('radius', 0)}\n")
    return out


@pytest.mark.parametrize("parquet", [False, True])
def test_bins_become_a_grid_in_their_own_phase(tmp_path: Path, parquet: bool) -> None:
    source = folder(tmp_path, parquet=parquet)
    assert superpixel.sniff(source) == superpixel.sniff(source / "CRC-P2-") == "Pixel2Gene folder"
    sdata = ss.io.convert(source, tmp_path / "s.zarr")
    table = sdata["counts_superpixels"]
    region = regions.get(sdata, "superpixels")
    assert region.geometry.shape == (42, 42)  # of the whole picture: 1,200 px by 29.22
    frame = regions.read_window(sdata, "superpixels", (0, 0, 1000, 1000))
    np.testing.assert_allclose(frame.geometry.area, 64.0, rtol=1e-3)
    # A bin covers 29.22 x 29.22 px around its centre.
    x, y = (int(v) for v in frame.index[0].split("_"))
    np.testing.assert_allclose(frame.geometry.iloc[0].bounds[:2], (8 * x, 8 * y), atol=0.02)
    raw = (
        pd.read_parquet(source / "CRC-P2-cnts.parquet")
        if parquet
        else pd.read_csv(source / "CRC-P2-cnts.tsv", sep="\t", index_col=0)
    )
    np.testing.assert_array_equal(table.X.toarray(), raw.loc[table.obs_names].to_numpy())
    assert list(table.var_names) == (["A", "B", "C", "D"] if parquet else ["A", "B", "C", "A-1"])
    at = np.array([[int(v) + 0.5 for v in name.split("_")] for name in table.obs_names]) * 8
    np.testing.assert_allclose(table.obsm["spatial"], at, atol=0.02)


def test_rounded_places_are_still_a_grid(tmp_path: Path) -> None:
    source = folder(tmp_path)
    frame = pd.read_csv(source / "CRC-P2-locs-raw.tsv", sep="\t", index_col=0).round().astype(int)
    frame.to_csv(source / "CRC-P2-locs-raw.tsv", sep="\t")
    sdata = ss.io.read(source)
    assert "superpixels" in sdata.points
    assert sdata.points["superpixels"].attrs["stainseq"]["grid"]["pitch_um"] == pytest.approx(8.0, rel=2e-3)


def test_places_off_a_grid_are_circles_of_the_stated_size(tmp_path: Path) -> None:
    source = folder(tmp_path, scattered=True, radius=55)
    sdata = ss.io.read(source)
    assert sdata["spots"]["radius"].iloc[0] == 27.5
    assert any("diameter in um" in n for n in sdata.attrs["stainseq"]["notes"])
    other = ss.io.read(source, radius_unit="radius_px")
    assert other["spots"]["radius"].iloc[0] == pytest.approx(55 * PIXEL)


def test_a_testing_folder_is_he_alone(tmp_path: Path) -> None:
    source = folder(tmp_path)
    for file in [*source.glob("*cnts*"), *source.glob("*locs*")]:
        file.unlink()
    assert superpixel.sniff(source) == "Pixel2Gene folder, H&E alone"
    sdata = ss.io.read(source)
    assert list(sdata.images) == ["he"]
    assert not sdata.tables
    assert sdata.attrs["stainseq"]["mpp"] == pytest.approx(PIXEL)


def test_what_cannot_be_right(tmp_path: Path) -> None:
    source = folder(tmp_path)
    places, counts = source / "CRC-P2-locs-raw.tsv", source / "CRC-P2-cnts.tsv"
    frame = pd.read_csv(places, sep="\t", index_col=0)
    (frame * 4).to_csv(places, sep="\t")
    with pytest.raises(InputError, match="of the places lie in the image"):
        ss.io.read(source)
    pd.concat([frame, frame.iloc[:1]]).to_csv(places, sep="\t")
    with pytest.raises(InputError, match="duplicate ids"):
        ss.io.read(source)
    frame.to_csv(places, sep="\t")
    table = pd.read_csv(counts, sep="\t", index_col=0)
    (table / 3).to_csv(counts, sep="\t")
    with pytest.raises(InputError, match=r"no whole number .* row 5_3, gene A"):
        ss.io.read(source)
    table.to_csv(counts, sep="\t")
    for text, error in (("0", ScaleError), ("half", FormatError)):
        (source / "CRC-P2-pixel-size-raw.txt").write_text(text)
        with pytest.raises(error):
            ss.io.read(source)


def test_a_pixel_size_must_be_there_and_of_a_picture_of_superpixels(tmp_path: Path) -> None:
    source = folder(tmp_path)
    size = source / "CRC-P2-pixel-size-raw.txt"
    for text in ("0", "100", "-0.5"):
        size.write_text(text)
        with pytest.raises(ScaleError, match=f"a pixel size of {text} um.*microns per pixel"):
            ss.io.read(source)
    size.write_text("nan")
    with pytest.raises(FormatError, match="no number"):
        ss.io.read(source)
    size.unlink()
    with pytest.raises(ScaleError, match=r"no pixel size of the H&E.*CRC-P2-pixel-size-raw\.txt.*--mpp"):
        ss.io.read(source)
    sdata = ss.io.read(source, mpp=PIXEL)
    assert regions.get(sdata, "superpixels").geometry.shape == (42, 42)
    assert sdata.attrs["stainseq"]["mpp_from"] == "--mpp"
    (source / "CRC-P2-pixel-size.txt").write_text("0")
    with pytest.raises(ScaleError, match="a pixel size of 0 um"):
        ss.io.read(source, mpp=PIXEL)


@pytest.mark.parametrize("value", [-1.0, np.nan, 0.5, np.inf, 3e9])
def test_parquet_values_that_are_no_counts(tmp_path: Path, value: float) -> None:
    source = folder(tmp_path, parquet=True)
    path = source / "CRC-P2-cnts.parquet"
    frame = pd.read_parquet(path).astype(float)
    frame.iloc[7, 2] = value
    frame.to_parquet(path)
    with pytest.raises(InputError, match=rf"of C in {frame.index[7]}\), .*raw counts"):
        ss.io.read(source)


def test_tables_that_are_damaged_or_do_not_belong_together(tmp_path: Path) -> None:
    source = folder(tmp_path, parquet=True)
    counts, places = source / "CRC-P2-cnts.parquet", source / "CRC-P2-locs-raw.parquet"
    whole, at = counts.read_bytes(), places.read_bytes()
    for path, kept in ((counts, whole), (places, at)):
        path.write_bytes(kept[: len(kept) // 2])
        with pytest.raises(FormatError, match="truncated or damaged"):
            ss.io.read(source)
        path.write_bytes(kept)
    frame = pd.read_parquet(counts)
    frame.rename(index=lambda i: f"other-{i}").to_parquet(counts)
    with pytest.raises(InputError, match="no id in common between positions"):
        ss.io.read(source)
    pd.concat([frame, frame.iloc[:1]]).to_parquet(counts)
    with pytest.raises(InputError, match="duplicate ids"):
        ss.io.read(source)
    frame.astype(str).to_parquet(counts)
    sdata = ss.io.read(source)  # numbers as text are numbers
    assert sdata["counts_superpixels"].X.sum() == frame.to_numpy().sum()
    frame.assign(A="many").to_parquet(counts)
    with pytest.raises(FormatError, match="counts that are no numbers"):
        ss.io.read(source)
    counts.write_bytes(whole)
    places.unlink()
    with pytest.raises(MissingError, match=r"CRC-P2-cnts\.parquet without locs-raw"):
        ss.io.read(source)


def test_a_picture_that_cannot_be_read(tmp_path: Path) -> None:
    source = folder(tmp_path)
    picture = source / "CRC-P2-he-raw.jpg"
    picture.write_bytes(b"no picture at all")
    with pytest.raises(StainseqError, match="he-raw"):  # with openslide no slide, without it none that it could be
        ss.io.read(source)
    picture.write_bytes(b"")
    with pytest.raises(FormatError, match="an empty file"):
        ss.io.read(source)


def test_several_prefixes_in_a_folder_are_named(tmp_path: Path) -> None:
    source = folder(tmp_path)
    for file in list(source.iterdir()):
        (source / file.name.replace("CRC-P2-", "CRC-P5-")).write_bytes(file.read_bytes())
    with pytest.raises(FormatError, match=r"2 prefixes in one folder.*CRC-P2-.*CRC-P5-"):
        ss.io.read(source, platform="superpixel")
    assert ss.io.read(source / "CRC-P5-").attrs["stainseq"]["slide"] == "CRC-P5"


def test_cut_pictures_keep_a_phase_of_their_own(tmp_path: Path) -> None:
    """Pixel2Gene cuts the picture to the data: bins then begin anywhere."""
    source = folder(tmp_path)
    path = source / "CRC-P2-locs-raw.tsv"
    frame = pd.read_csv(path, sep="\t", index_col=0) - [11.3, 7.9]
    frame.to_csv(path, sep="\t")
    sdata = ss.io.read(source)
    region = regions.get(sdata, "superpixels")
    assert region.geometry.shape == (20, 30)
    np.testing.assert_allclose(region.centres_um, frame.to_numpy() * PIXEL, atol=1e-6)
    assert any("phase of its own" in n for n in sdata.attrs["stainseq"]["notes"])


def test_pieces_are_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from stainseq.readers import _pixel2gene

    path = folder(tmp_path, parquet=True) / "CRC-P2-cnts.parquet"
    whole = _pixel2gene.read_counts(path)
    monkeypatch.setattr(_pixel2gene, "_BLOCK_BYTES", 1)
    pieces = _pixel2gene.read_counts(path)
    assert whole.ids == pieces.ids
    assert (whole.X != pieces.X).nnz == 0
    np.testing.assert_array_equal(whole.X.toarray(), pd.read_parquet(path).to_numpy())


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_whatever_is_not_black_is_in_a_mask(tmp_path: Path, kind: type) -> None:
    from stainseq.readers import _pixel2gene

    want = np.random.default_rng(0).random((6, 9)) < 0.4
    grey, blue = want.astype(kind), np.zeros((6, 9, 3), dtype=kind)
    blue[..., 0] = want
    opaque = np.dstack([blue, np.full((6, 9), 255, dtype=kind)])
    for pixels in (grey, blue, opaque):
        cv2.imwrite(str(tmp_path / "mask-small-hs.png"), pixels)
        got = _pixel2gene.read_mask(tmp_path / "mask-small-hs.png", shapes=((6, 9),))
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("index", [None, ["1_2_3_4", "5_6_7_8"]])
def test_binned_transcripts_whose_ids_are_no_bins(tmp_path: Path, index: list[str] | None) -> None:
    from stainseq.readers import _pixel2gene

    path = tmp_path / "transcript_cnts29.22.parquet"
    pd.DataFrame({"A": [1, 2], "B": [0, 3]}, index=index).to_parquet(path)
    with pytest.raises(FormatError, match="ids that are no bins"):
        _pixel2gene.binned(path)


def test_transcripts_in_no_cell_have_one_word_for_it(tmp_path: Path) -> None:
    from stainseq.readers._build import Notes
    from stainseq.readers._pixel2gene import transcripts

    path = tmp_path / "transcript_he_pixel.parquet"
    at = {"x_location": [1.0, 2, 3, 4], "y_location": 1.0, "he_x": [2.0, 4, 6, 8], "he_y": 5.0, "feature_name": "A"}
    pd.DataFrame({**at, "cell_id": ["aaa-1", None, "-1", "UNASSIGNED"]}).to_parquet(path)
    frame = transcripts(path, 0.5, (10, 10), {"um": Identity()}, notes=Notes("s")).compute()
    assert frame["cell_id"].tolist() == ["aaa-1", *["UNASSIGNED"] * 3]
    np.testing.assert_allclose(frame[["x", "y"]], np.column_stack([[1, 2, 3, 4], [2.5] * 4]))
