"""Spatial Transcriptomics folders: joins, pixel size, side tables, bad input."""

from __future__ import annotations

import gzip
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest

import stainseq as ss
from stainseq.errors import FormatError, InputError, ScaleError


def _check(sdata: Any, truth: Any, *, rel: float = 2e-4) -> Any:
    table, facts = sdata["counts_spots"], sdata.attrs["stainseq"]
    assert facts["mpp"] == pytest.approx(truth.mpp, rel=rel)
    assert facts["mpp_from"] == "array pitch"
    assert sorted(table.obs_names) == sorted(truth.ids)
    order = [truth.ids.index(i) for i in table.obs_names]
    np.testing.assert_array_equal(table.X.toarray(), truth.counts[order])
    np.testing.assert_allclose(table.obsm["spatial"], truth.xy_px[order] * facts["mpp"], atol=0.05)
    assert table.X[:, 4].sum() == 0
    return table


@pytest.mark.parametrize("array", ["1k", "2k"])
@pytest.mark.parametrize("kind", ["jpeg", "png", "tiff"])
def test_both_arrays(tmp_path: Path, make: ModuleType, array: str, kind: str) -> None:
    truth = make.st(tmp_path / "S1", array=array, kind=kind)
    sdata = ss.io.read(tmp_path / "S1")
    table = _check(sdata, truth)
    facts = sdata.attrs["stainseq"]
    assert (facts["array"], facts["slide"], facts["platform"]) == (array, "S1", "st")
    assert sdata["spots"]["radius"].unique() == [50.0 if array == "1k" else 55.0]
    assert facts["frame"]["spots_on_tissue"] > 0.95
    assert table.obs["in_tissue"].eq(1).all()


def test_every_way_of_naming_a_slide(tmp_path: Path, make: ModuleType) -> None:
    """Folder of one, prefix among several, any of its files."""
    truths = {n: make.st(tmp_path / "all", name=n) for n in ("C1", "C2", "C2b")}
    names = ("C2", "C2_HE.jpg", "C2_counts.tsv.gz", "C2_selection.tsv")
    for source in names:
        path = tmp_path / "all" / source
        assert ss.io.sniff(path) == ("st", "Spatial Transcriptomics (counts, positions, image)")
        sdata = ss.io.read(path)
        assert sdata.attrs["stainseq"]["slide"] == "C2"
        assert sdata["counts_spots"].n_obs == len(truths["C2"].ids)
    assert ss.io.sniff(tmp_path / "all")[1] == "3 Spatial Transcriptomics slides"
    with pytest.raises(FormatError, match=r"3 slides.*C1.*C2b"):
        ss.io.read(tmp_path / "all")


def test_join_is_by_id_and_what_drops_out_is_said(tmp_path: Path, make: ModuleType) -> None:
    truth = make.st(tmp_path, drop_counts=3)
    path = tmp_path / "S1_counts.tsv.gz"
    text = gzip.decompress(path.read_bytes()) + b"99x99\t1\t1\t1\t1\t1\t1\n"
    path.write_bytes(gzip.compress(text))
    table = _check(ss.io.read(tmp_path), truth)
    notes = table.uns["stainseq_read"]["notes"]
    n = len(truth.ids)
    assert f"{n} of {n + 3} selected spots have counts" in notes
    assert "1 rows of counts without a position left out" in notes
    assert "1 duplicated gene names made unique" in notes


def test_off_tissue_spots_on_request(tmp_path: Path, make: ModuleType) -> None:
    make.st(tmp_path)
    table = pd.read_csv(tmp_path / "S1_selection.tsv", sep="\t")
    off = np.flatnonzero(table["selected"] == 1)[:5]
    table.loc[off, "selected"] = 0
    table.to_csv(tmp_path / "S1_selection.tsv", sep="\t", index=False)
    few = ss.io.read(tmp_path)["counts_spots"]
    every = ss.io.read(tmp_path, off_tissue=True)["counts_spots"]
    assert every.n_obs == few.n_obs + 5
    assert int((every.obs["in_tissue"] == 0).sum()) == 5


@pytest.mark.parametrize("fractions", [False, True])
def test_header_without_corner_and_fractional_ids(tmp_path: Path, make: ModuleType, fractions: bool) -> None:
    truth = make.st(tmp_path, header_corner=False, fractions=fractions)
    _check(ss.io.read(tmp_path), truth)


def test_rounded_ids_against_refined_positions(tmp_path: Path, make: ModuleType) -> None:
    """Counts by "10x21" join a spot table that has only fractional x and y."""
    truth = make.st(tmp_path)
    table = pd.read_csv(tmp_path / "S1_selection.tsv", sep="\t").drop(columns=["x", "y"])
    table.rename(columns={"new_x": "x", "new_y": "y"}).to_csv(tmp_path / "S1_selection.tsv", sep="\t", index=False)
    _check(ss.io.read(tmp_path), truth)


def test_genes_in_rows(tmp_path: Path, make: ModuleType) -> None:
    truth = make.st(tmp_path)
    path = tmp_path / "S1_counts.tsv.gz"
    table = pd.read_csv(path, sep="\t", index_col=0, header=None).T
    path.write_bytes(gzip.compress(table.set_index(table.columns[0]).to_csv(sep="\t").encode()))
    assert gzip.decompress(path.read_bytes()).decode().splitlines()[1].startswith("ACTB\t")
    _check(ss.io.read(tmp_path), truth)


def test_tables_alone(tmp_path: Path, make: ModuleType) -> None:
    """Without a picture and a spot table, ids such as 16.92x9.015 times the pitch."""
    truth = make.st(tmp_path, fractions=True)
    (tmp_path / "S1_selection.tsv").unlink()
    (tmp_path / "S1_HE.jpg").unlink()
    sdata = ss.io.read(tmp_path)
    table = sdata["counts_spots"]
    assert "mpp" not in sdata.attrs["stainseq"]
    assert table.n_obs == len(truth.ids)
    x, y = (float(v) for v in table.obs_names[5].split("x"))
    np.testing.assert_allclose(table.obsm["spatial"][5], [x * 200, y * 200])


def test_picture_without_pixel_coordinates(tmp_path: Path, make: ModuleType) -> None:
    make.st(tmp_path)
    (tmp_path / "S1_selection.tsv").unlink()
    with pytest.raises(ScaleError, match="no pixel coordinates"):
        ss.io.read(tmp_path)
    assert not ss.io.read(tmp_path, image="none").images


def test_labels_and_proportions_beside(tmp_path: Path, make: ModuleType) -> None:
    truth = make.st(tmp_path)
    some = list(range(0, len(truth.ids), 2))
    rows = [[f"p{i}", 1 + i % 3, *truth.ids[i].split("x"), *truth.xy_px[i].round(2), 7.5] for i in reversed(some)]
    make.write_rows(tmp_path / "S1_clusters.tsv.gz", ["", "label", "x", "y", "pixel_x", "pixel_y", "warped_x"], rows)
    shares = [[truth.ids[i], 0.25, 0.75] for i in reversed(some)]
    make.write_rows(tmp_path / "S1_stereoscope_major.tsv", ["", "CAFs MSC/iCAF-like", "T cells"], shares)
    table = _check(ss.io.read(tmp_path), truth)
    by_id = table.obs.loc[[truth.ids[i] for i in some], "cluster"]
    assert by_id.tolist() == [str(1 + i % 3) for i in some]
    assert table.obs["cluster"].isna().sum() == len(truth.ids) - len(some)
    got = table.obsm["stereoscope_major"][[truth.ids.index(i) for i in table.obs_names].index(some[1])]
    np.testing.assert_array_equal(got, [0.25, 0.75])
    assert np.isnan(table.obsm["stereoscope_major"]).any(1).sum() == len(truth.ids) - len(some)
    assert table.uns["stereoscope_major"]["columns"] == ["CAFs MSC/iCAF-like", "T cells"]


def test_mpp_given_wins_and_is_compared(tmp_path: Path, make: ModuleType) -> None:
    truth = make.st(tmp_path)
    sdata = ss.io.read(tmp_path, mpp=truth.mpp * 1.1)
    facts = sdata.attrs["stainseq"]
    assert (facts["mpp"], facts["mpp_from"]) == (truth.mpp * 1.1, "--mpp")
    assert facts["fit"]["mpp"] == pytest.approx(truth.mpp, rel=2e-4)
    assert any("+10.0%" in n for n in sdata["counts_spots"].uns["stainseq_read"]["notes"])


def test_one_spot_needs_the_pixel_size(tmp_path: Path, make: ModuleType) -> None:
    make.st(tmp_path)
    table = pd.read_csv(tmp_path / "S1_selection.tsv", sep="\t")
    table[table["selected"] == 1].iloc[100:101].to_csv(tmp_path / "S1_selection.tsv", sep="\t", index=False)
    with pytest.raises(ScaleError, match="--mpp"):
        ss.io.read(tmp_path)
    with pytest.raises(ScaleError, match="cannot be fitted from one spot"):
        ss.io.read(tmp_path, pitch_um=200)
    sdata = ss.io.read(tmp_path, mpp=6.25)
    assert sdata["counts_spots"].n_obs == 1
    assert sdata["spots"].shape[0] == 1


def test_pitch_where_places_do_not_tell(tmp_path: Path, make: ModuleType) -> None:
    truth = make.st(tmp_path)
    table = pd.read_csv(tmp_path / "S1_selection.tsv", sep="\t")
    shifted = table.assign(x=table.x + 40, new_x=table.new_x + 40)
    shifted.to_csv(tmp_path / "S1_selection.tsv", sep="\t", index=False)
    path = tmp_path / "S1_counts.tsv.gz"
    lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    moved = [f"{int(r.split('x', 1)[0]) + 40}x{r.split('x', 1)[1]}" for r in lines[1:]]
    path.write_bytes(gzip.compress("\n".join([lines[0], *moved]).encode()))
    with pytest.raises(ScaleError, match="pitch_um"):
        ss.io.read(tmp_path)
    assert ss.io.read(tmp_path, pitch_um=200).attrs["stainseq"]["mpp"] == pytest.approx(truth.mpp, rel=2e-4)


@pytest.mark.parametrize("factor", [0.25, 3.0])
def test_spots_and_picture_in_different_frames(tmp_path: Path, make: ModuleType, factor: float) -> None:
    """The message states the share and the scale that would fit; that scale is then accepted."""
    truth = make.st(tmp_path)
    table = pd.read_csv(tmp_path / "S1_selection.tsv", sep="\t")
    table[["pixel_x", "pixel_y"]] *= factor
    table.to_csv(tmp_path / "S1_selection.tsv", sep="\t", index=False)
    with pytest.raises(ScaleError, match=r"different frames.*coordinates times ([\d.]+)") as caught:
        ss.io.read(tmp_path)
    advised = float(str(caught.value).split("coordinates times ")[1].split(" ")[0])
    assert advised * factor == pytest.approx(1, rel=0.06)
    sdata = ss.io.read(tmp_path, scale=1 / factor)
    assert sdata.attrs["stainseq"]["mpp"] == pytest.approx(truth.mpp, rel=1e-3)
    assert ss.io.read(tmp_path, check_frame=False)["counts_spots"].n_obs == len(truth.ids)


def _transform_pixels(folder: Path, matrix: list[list[float]], size: tuple[int, int]) -> None:
    """Turn or mirror picture and pixel coordinates alike; `size` is (height, width) of the picture before."""
    from PIL import Image

    table = pd.read_csv(folder / "S1_selection.tsv", sep="\t")
    pixels = np.array(Image.open(folder / "S1_HE.jpg"))
    xy = table[["pixel_x", "pixel_y"]].to_numpy() @ np.array(matrix).T
    if matrix[0][0] == 0:
        pixels = pixels.transpose(1, 0, 2)
    for axis in (0, 1):
        if sum(matrix[axis]) < 0:
            xy[:, axis] += size[1 - axis] if matrix[0][0] else size[axis]
            pixels = np.flip(pixels, axis=1 - axis)
    table[["pixel_x", "pixel_y"]] = xy
    table.to_csv(folder / "S1_selection.tsv", sep="\t", index=False)
    Image.fromarray(np.ascontiguousarray(pixels)).save(folder / "S1_HE.jpg", quality=95)


def _off_centre(folder: Path) -> tuple[int, int]:
    """Keep the tissue of the upper part and its spots, so that the exchange of x and y is seen in the picture."""
    from PIL import Image

    table = pd.read_csv(folder / "S1_selection.tsv", sep="\t")
    pixels = np.array(Image.open(folder / "S1_HE.jpg"))
    pixels[800:] = 243
    table.loc[table["pixel_y"] > 780, "selected"] = 0
    table.to_csv(folder / "S1_selection.tsv", sep="\t", index=False)
    Image.fromarray(pixels).save(folder / "S1_HE.jpg", quality=95)
    return pixels.shape[:2]


def test_x_and_y_exchanged(tmp_path: Path, make: ModuleType) -> None:
    """Three quarters of the spots still lie on tissue, yet the table is refused, with the fix."""
    make.st(tmp_path)
    _off_centre(tmp_path)
    right = ss.io.read(tmp_path).attrs["stainseq"]["frame"]
    assert right["spots_on_tissue"] > 0.95
    table = pd.read_csv(tmp_path / "S1_selection.tsv", sep="\t")
    swapped = table.assign(pixel_x=table["pixel_y"], pixel_y=table["pixel_x"])
    swapped.to_csv(tmp_path / "S1_selection.tsv", sep="\t", index=False)
    with pytest.raises(ScaleError, match=r"x and y are exchanged.*spots on tissue, exchanged \d+% would be") as caught:
        ss.io.read(tmp_path)
    share = int(str(caught.value).split(" with ")[1].split("%")[0])
    assert 50 <= share <= 90
    assert "the two coordinate columns the other way round" in str(caught.value)
    assert ss.io.read(tmp_path, check_frame=False)["counts_spots"].n_obs > 100


@pytest.mark.parametrize("matrix", [[[-1, 0], [0, 1]], [[1, 0], [0, -1]], [[0, 1], [1, 0]], [[0, -1], [1, 0]]])
def test_pictures_that_were_flipped_or_turned_pass(tmp_path: Path, make: ModuleType, matrix: list[list[float]]) -> None:
    truth = make.st(tmp_path)
    _transform_pixels(tmp_path, matrix, _off_centre(tmp_path))
    sdata = ss.io.read(tmp_path)
    facts, notes = sdata.attrs["stainseq"], sdata["counts_spots"].uns["stainseq_read"]["notes"]
    assert facts["mpp"] == pytest.approx(truth.mpp, rel=1e-3)
    assert facts["frame"]["spots_on_tissue"] > 0.95
    assert any("mirrored" in n for n in notes) == (np.linalg.det(matrix) < 0)


def test_a_pixel_size_that_contradicts_the_array(tmp_path: Path, make: ModuleType) -> None:
    make.st(tmp_path)
    with pytest.raises(ScaleError, match=r"0.5 um per pixel contradicts the array, whose pitch says 6\.25"):
        ss.io.read(tmp_path, mpp=0.5)


def test_spots_without_counts_are_noted(tmp_path: Path, make: ModuleType) -> None:
    make.st(tmp_path)
    _counts_text(tmp_path / "S1_counts.tsv.gz", lambda t: [t[0], t[1].split("\t")[0] + "\t0" * 6, *t[2:]])
    assert any(
        n.startswith("the rows of 1 of ") and n.endswith("spots hold nothing but zeros") for n in _notes(tmp_path)
    )
    _counts_text(tmp_path / "S1_counts.tsv.gz", lambda t: [t[0], *[r.split("\t")[0] + "\t0" * 6 for r in t[1:]]])
    assert "all counts are zero" in _notes(tmp_path)


def _notes(path: Path) -> list[str]:
    sdata = ss.io.read(path)
    notes = sdata.attrs["stainseq"]["notes"]
    assert notes == sdata["counts_spots"].uns["stainseq_read"]["notes"]
    return notes


def _counts_text(path: Path, change: Any) -> None:
    text = gzip.decompress(path.read_bytes()).decode().splitlines()
    path.write_bytes(gzip.compress(("\n".join(change(text)) + "\n").encode()))


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (lambda t: [*t, t[3], t[5]], InputError, r"2 duplicate ids in the counts \(\d+x\d+, \d+x\d+\)"),
        (lambda t: [*t[:4], "\t" + t[4].split("\t", 1)[1], *t[5:]], InputError, r"1 missing ids in the counts"),
        (lambda t: [*t[:4], t[4].rsplit("\t", 1)[0] + "\t-3", *t[5:]], InputError, r"negative count \(-3\).*gene ACTB"),
        (lambda t: [*t[:4], t[4].rsplit("\t", 1)[0] + "\t1.5", *t[5:]], InputError, r"no whole number \(1.5\)"),
        (lambda t: [*t[:4], t[4].rsplit("\t", 1)[0] + "\tNaN", *t[5:]], InputError, "missing count"),
        (lambda t: [*t[:-1], t[-1][:6]], FormatError, "truncated"),
        (lambda t: [t[0]], FormatError, "a counts table without rows"),
        (
            lambda t: [t[0], *[r.replace("\t", ".25\t").replace("x", "x", 1) + ".5" for r in t[1:]]],
            InputError,
            r"no whole number",
        ),
        (lambda t: [t[0], *[r.split("\t", 1)[0] + "\t0.5" * 6 for r in t[1:]]], InputError, r"no whole number \(0.5\)"),
        (
            lambda t: [t[0], *[f"spot{i}\t" + r.split("\t", 1)[1] for i, r in enumerate(t[1:])]],
            InputError,
            "no id in c",
        ),
        (
            lambda t: [t[0], *[f"{1000 + i}x1\t" + r.split("\t", 1)[1] for i, r in enumerate(t[1:])]],
            InputError,
            "no id",
        ),
    ],
)
def test_bad_counts(tmp_path: Path, make: ModuleType, change: Any, error: type, match: str) -> None:
    make.st(tmp_path)
    _counts_text(tmp_path / "S1_counts.tsv.gz", change)
    with pytest.raises(error, match=match):
        ss.io.read(tmp_path)


def test_a_truncated_gzip_and_an_empty_file(tmp_path: Path, make: ModuleType) -> None:
    make.st(tmp_path)
    path = tmp_path / "S1_counts.tsv.gz"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FormatError, match=r"ends too early.*S1_counts"):
        ss.io.read(tmp_path, counts=path)
    path.write_bytes(b"")
    with pytest.raises(FormatError, match=r"an empty counts table.*S1_counts"):
        ss.io.read(tmp_path)
    (tmp_path / "S1_selection.tsv").unlink()
    with pytest.raises(FormatError, match="no Spatial Transcriptomics slide"):
        ss.io.read(tmp_path, platform="st")


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (lambda t: pd.concat([t, t.iloc[:2]]), InputError, "2 duplicate ids in the spot table"),
        (lambda t: t.assign(pixel_x=t.pixel_x.where(t.selected == 0)), InputError, "spots without coordinates"),
        (lambda t: t.assign(x=t.x.where(t.index != 4)), InputError, r"without x and y \(rows 5\)"),
        (lambda t: t.assign(selected=0), InputError, "an empty slide"),
        (lambda t: t.assign(pixel_x=t.pixel_y.to_numpy()[::-1], pixel_y=t.x * 0.0), ScaleError, "line"),
        (
            lambda t: t.assign(pixel_x=np.random.default_rng(0).permutation(t.pixel_x)),
            ScaleError,
            "do not lie on an array",
        ),
    ],
)
def test_bad_spot_tables(tmp_path: Path, make: ModuleType, change: Any, error: type, match: str) -> None:
    make.st(tmp_path)
    path = tmp_path / "S1_selection.tsv"
    change(pd.read_csv(path, sep="\t")).to_csv(path, sep="\t", index=False)
    with pytest.raises(error, match=match):
        ss.io.read(tmp_path)


def test_a_truncated_picture_names_its_file(tmp_path: Path, make: ModuleType) -> None:
    make.st(tmp_path)
    path = tmp_path / "S1_HE.jpg"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(FormatError, match=r"truncated JPEG.*S1_HE\.jpg"):
        ss.io.read(tmp_path)


def test_an_empty_picture_is_not_passed_over(tmp_path: Path, make: ModuleType) -> None:
    make.st(tmp_path)
    (tmp_path / "S1_HE.jpg").write_bytes(b"")
    with pytest.raises(FormatError, match=r"an empty file.*S1_HE\.jpg"):
        ss.io.read(tmp_path)


def test_files_that_lie_elsewhere(tmp_path: Path, make: ModuleType) -> None:
    truth = make.st(tmp_path / "a")
    for name in ("S1_HE.jpg", "S1_selection.tsv"):
        (tmp_path / "a" / name).rename(tmp_path / name)
    sdata = ss.io.read(
        tmp_path / "a" / "S1_counts.tsv.gz", image=tmp_path / "S1_HE.jpg", positions=tmp_path / "S1_selection.tsv"
    )
    _check(sdata, truth)
    with pytest.raises(InputError, match=r"the reader st has no option pich_um.*pitch_um"):
        ss.io.read(tmp_path / "a", pich_um=100)
