"""Patches of a slide: where they lie, what they show, and the nuclei in them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import shapely

import stainseq as ss
from stainseq import patches as windows
from stainseq import regions, store
from stainseq.errors import InputError, MissingError, ScaleError, StoreError


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A planted Xenium run whose H&E lies turned by -89.5 degrees and whose nuclei are dark."""
    folder = tmp_path_factory.mktemp("xenium") / "run"
    ss.datasets.xenium(folder, size="small", transcripts=False, masks=False)
    return folder


@pytest.fixture
def slide(source, tmp_path):
    ss.io.convert(source, tmp_path / "x.zarr")
    return ss.io.open(tmp_path / "x.zarr")


def test_lattice_pixels_and_masks(slide):
    """Turned or not, pixels and masks lie on each other: planted nuclei are dark, and counts are those of centres."""
    ss.pp.patches(slide)
    frame = slide.shapes["patches"]
    opened = windows.load(slide)
    nuclei = windows.nuclei(slide, opened)
    assert (opened.size_px, opened.mpp) == (256, 0.25)
    assert np.allclose(shapely.area(frame.geometry.to_numpy()), 64**2, rtol=1e-6)
    masks = nuclei.masks(opened, slice(None))
    pixels = np.stack([opened.pixels(i) for i in range(len(opened))]).mean(-1)
    assert pixels[masks > 0].mean() < 0.7 * pixels[masks == 0].mean()
    # Neighbours share 64 px: the same nuclei there.
    at = {tuple(c): i for i, c in enumerate(opened.corners)}
    left, right = at[0, 0], at[192, 0]
    assert np.array_equal(masks[left][:, 192:], masks[right][:, :64])
    assert masks[left].any()
    for i in range(len(opened)):
        inside = shapely.contains_xy(frame.geometry.iloc[i], regions.get(slide, "nuclei").centres_um)
        assert frame["n_cells"].iloc[i] == inside.sum()
    # A nucleus that lies in a patch whole has there the area of its outline.
    area = shapely.area(regions.get(slide, "nuclei").geometry.geometry) / 0.25**2
    whole = shapely.contains(frame.geometry.iloc[left], regions.get(slide, "nuclei").geometry.geometry)
    drawn = np.bincount(masks[left].ravel(), minlength=len(area) + 1)[1:]
    assert np.allclose(drawn[whole], area[whole], rtol=0.12, atol=6)


def test_ids_stay_when_filters_change(slide):
    """A patch is named by its place on the whole lattice."""
    ss.pp.patches(slide, min_tissue=0)
    everything = slide.shapes["patches"]
    ss.pp.patches(slide, min_cells=14, key_added="some")
    some = slide.shapes["some"]
    assert 0 < len(some) < len(everything)
    assert (everything.loc[some.index, "n_cells"] >= 14).all()
    assert np.array_equal(everything.loc[some.index, ["x_px", "y_px"]], some[["x_px", "y_px"]])
    rows, columns = store.stamp_of(slide, "patches")["lattice"]
    number = everything.index.str.rsplit("_", n=1).str[1].astype(int)
    assert np.array_equal(number, everything["row"] * columns + everything["col"])
    height, width = windows.load(slide).image.shape
    factor = windows.load(slide).factor
    assert ((everything[["x_px", "y_px"]] + 256) * factor <= np.array([width, height]) + 1).all().all()
    assert rows == np.ceil((np.floor(height / factor + 0.01) - 64) / 192)


def test_tissue(slide):
    ss.pp.tissue(slide)
    ss.pp.patches(slide, min_tissue=0, key_added="every")
    ss.pp.patches(slide, min_tissue=0.9)
    frame = slide.shapes["every"]
    outline = shapely.union_all(slide.shapes["tissue"].geometry.to_numpy())
    share = [shapely.intersection(g, outline).area / g.area for g in frame.geometry]
    assert np.allclose(frame["tissue"], share, atol=1e-9)
    assert list(slide.shapes["patches"].index) == list(frame.index[np.array(share) >= 0.9])


def test_other_resolution(slide):
    """At 20x a patch is twice as wide and shows the same tissue."""
    ss.pp.patches(slide, mpp=0.5, min_tissue=0)
    ss.pp.patches(slide, mpp=0.25, size_px=512, overlap_px=128, min_tissue=0, key_added="fine")
    coarse, fine = windows.load(slide), windows.load(slide, patches="fine")
    assert np.array_equal(coarse.ids, fine.ids)
    halved = fine.pixels(0).reshape(256, 2, 256, 2, 3).mean((1, 3))
    assert np.abs(halved - coarse.pixels(0)).mean() < 4


def test_refusals(slide):
    for bad, error in (
        ({"overlap_px": 256}, InputError),
        ({"size_px": 256.5}, InputError),
        ({"mpp": 0}, InputError),
        ({"mpp": 0.1}, ScaleError),
        ({"min_cells": 10_000}, InputError),
        ({"size_px": 100_000, "overlap_px": 0}, InputError),
        ({"tissue_key": "nowhere"}, MissingError),
        ({"key_added": "nuclei"}, StoreError),
    ):
        with pytest.raises(error):
            ss.pp.patches(slide, **bad)
    with pytest.raises(MissingError, match="stainseq patches"):
        windows.load(slide)
    with pytest.raises(InputError, match="no patches"):
        windows.load(slide, patches="cells")
    ss.pp.superpixels(slide, tissue_key=None)
    ss.pp.patches(slide)
    with pytest.raises(InputError, match="no outlines"):
        windows.nuclei(slide, windows.load(slide), region="superpixels")


def test_command(slide, capsys):
    from stainseq.cli import run

    assert run(["patches", str(slide.path), "--mpp", "0.5", "--json", "/dev/stdout"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["patches"] == len(ss.io.open(slide.path).shapes["patches"])
    assert told["cells"] == "nuclei"
    assert run(["patches", str(slide.path), "--mpp", "0.05"]) == 1
    assert "um/px" in capsys.readouterr().err
