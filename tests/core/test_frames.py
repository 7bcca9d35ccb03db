"""Pixel size from lattices against planted ones; the frame check on drawn tissue."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stainseq.core import frames
from stainseq.errors import ScaleError


def _hexagonal(rows: int = 30, cols: int = 24) -> np.ndarray:
    r = np.repeat(np.arange(rows), cols)
    c = np.tile(np.arange(cols) * 2, rows) + r % 2
    return np.column_stack([c * frames.VISIUM_STEP_UM[0], r * frames.VISIUM_STEP_UM[1]])


def _moved(design: np.ndarray, mpp: float, degrees: float, mirror: bool) -> np.ndarray:
    turn = np.radians(degrees)
    matrix = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]]) / mpp
    return (design * [-1.0 if mirror else 1.0, 1.0]) @ matrix + [312.7, 88.1]


@given(
    mpp=st.floats(0.1, 20),
    degrees=st.floats(0, 360),
    mirror=st.booleans(),
    seed=st.integers(0, 50),
    kind=st.sampled_from("hs2"),
)
@settings(max_examples=40, deadline=None)
def test_both_fits_find_any_planted_lattice(mpp: float, degrees: float, mirror: bool, seed: int, kind: str) -> None:
    """Rotated, mirrored, a third of the spots missing: the pixel size comes back to 1e-6."""
    rng = np.random.default_rng(seed)
    if kind == "h":
        design, cell = _hexagonal(), 2 * np.prod(frames.VISIUM_STEP_UM)
    else:
        x, y = (v.ravel() for v in np.meshgrid(np.arange(24), np.arange(30)))
        design, cell = np.column_stack([x, y]) * 200.0, 200.0**2
        if kind == "2":
            design = (np.column_stack([x, y]) * frames.ST_2K_STEP_UM)[(x + y) % 2 == 0]
            cell = 2 * np.prod(frames.ST_2K_STEP_UM)
    design = design[rng.random(len(design)) > 0.33]
    xy = _moved(design, mpp, degrees, mirror)
    fit = frames.fit_design(design, xy, pitch_um=100)
    assert fit.mpp == pytest.approx(mpp, rel=1e-9)
    assert fit.stretch == pytest.approx(1, abs=1e-9)
    assert fit.mirrored == mirror
    lattice = frames.fit_lattice(xy)
    assert np.sqrt(cell / lattice.cell_px2) == pytest.approx(mpp, rel=1e-6)
    assert lattice.angle_deg == pytest.approx({"h": 60.1135, "s": 90, "2": 83.89}[kind], abs=0.02)


def test_whole_pixels_do_not_bias() -> None:
    """Positions rounded to pixels, as Space Ranger 1 writes them; nearest distances would be off by 1 %."""
    xy = np.round(_moved(_hexagonal(78, 64), 0.72, 0.4, False))
    lattice = frames.fit_lattice(xy)
    assert np.sqrt(8700 / lattice.cell_px2) == pytest.approx(0.72, rel=2e-5)
    assert frames.fit_design(_hexagonal(78, 64), xy, pitch_um=100).mpp == pytest.approx(0.72, rel=2e-5)


def test_gross_outliers_are_left_out() -> None:
    design = _hexagonal()
    xy = _moved(design, 0.5, 3, False)
    rng = np.random.default_rng(0)
    xy += rng.normal(0, 0.4, xy.shape)
    xy[:20] = 0
    fit = frames.fit_design(design, xy, pitch_um=100)
    assert fit.mpp == pytest.approx(0.5, rel=2e-4)
    assert fit.n <= len(design) - 20


def test_a_stretched_picture_keeps_its_area() -> None:
    """mpp does not depend on where the spots lie, and the stretch is reported."""
    design = _hexagonal()
    stretched = _moved(design, 0.5, 0, False) * [1.01, 1.0]
    for part in (slice(None), slice(0, 100), slice(None, None, 7)):
        fit = frames.fit_design(design[part], stretched[part], pitch_um=100)
        assert fit.mpp == pytest.approx(0.5 / np.sqrt(1.01), rel=1e-9)
        assert fit.stretch == pytest.approx(1.01, rel=1e-9)


@pytest.mark.parametrize("n", [0, 1, 2])
def test_too_few_spots(n: int) -> None:
    design = _hexagonal()[:n]
    with pytest.raises(ScaleError, match="--mpp"):
        frames.fit_design(design, design, pitch_um=100)
    with pytest.raises(ScaleError, match="--mpp"):
        frames.fit_lattice(design)


def test_no_lattice() -> None:
    rng = np.random.default_rng(0)
    scattered = rng.uniform(0, 5000, (400, 2))
    with pytest.raises(ScaleError, match="lattice"):
        frames.fit_lattice(scattered)
    with pytest.raises(ScaleError, match="do not lie on an array"):
        frames.fit_design(_hexagonal()[:400], scattered, pitch_um=100)
    line = np.column_stack([np.arange(40.0), np.zeros(40)])
    for call in (lambda: frames.fit_lattice(line), lambda: frames.fit_design(line, line, pitch_um=1)):
        with pytest.raises(ScaleError, match=r"line|lattice"):
            call()
    with pytest.raises(ScaleError):
        frames.fit_lattice(np.zeros((50, 2)))


def test_array_by_its_places() -> None:
    x, y = (v.ravel() for v in np.meshgrid(np.arange(1, 34), np.arange(1, 36)))
    places = np.column_stack([x, y])
    assert frames.st_array(places) == "1k"
    assert frames.st_array(places + 0.013) == "1k"
    assert frames.st_array(places[(x + y) % 2 == 0]) == "2k"
    assert frames.st_array(places[(x + y) % 2 == 1]) == "2k"
    assert frames.st_array(places + 30) is None
    assert frames.st_array(places[:1]) is None


def _section() -> tuple[np.ndarray, np.ndarray]:
    """Picture of two blobs and spots on them, level-0 pixels = picture pixels."""
    y, x = np.mgrid[:500, :700]
    tissue = (((x - 250) / 130) ** 2 + ((y - 200) / 110) ** 2 < 1) | (((x - 480) / 90) ** 2 + ((y - 330) / 70) ** 2 < 1)
    rgb = np.full((500, 700, 3), 245, np.uint8)
    rgb[tissue] = (190, 110, 170)
    gx, gy = (v.ravel() for v in np.meshgrid(np.arange(5, 700, 12), np.arange(5, 500, 12)))
    on = tissue[gy, gx]
    return rgb, np.column_stack([gx, gy])[on].astype(float)


CHECK = {"factor": 1.0, "mpp": 10.0, "cell_um2": 120.0**2}


def test_spots_in_place_pass() -> None:
    rgb, xy = _section()
    check = frames.check_frame(xy, rgb, **CHECK)
    assert check.inside == 1
    assert check.on_tissue > 0.97
    black = rgb.copy()
    black[:, 600:] = 0  # painted surroundings are no tissue
    assert frames.check_frame(xy, black, **CHECK).on_tissue > 0.97
    assert np.isnan(frames.check_frame(xy[:0], rgb, **CHECK).inside)


@pytest.mark.parametrize("factor", [1 / 8, 0.4, 0.7, 2.5, 10.0])
def test_another_scale_is_named(factor: float) -> None:
    rgb, xy = _section()
    with pytest.raises(ScaleError, match="different frames") as caught:
        frames.check_frame(xy * factor, rgb, factor=1.0, mpp=10.0 / factor, cell_um2=120.0**2)
    advised = float(str(caught.value).split("coordinates times ")[1].split(" ")[0])
    assert advised * factor == pytest.approx(1, rel=0.05)


def test_a_known_factor_is_called_by_its_name() -> None:
    rgb, xy = _section()
    with pytest.raises(ScaleError, match=r"times 0\.17 \(tissue_hires_scalef\)"):
        frames.check_frame(
            xy / 0.17, rgb, factor=1.0, mpp=1.7, cell_um2=120.0**2, named={"tissue_hires_scalef": 0.17, "other": 0.05}
        )


def test_exchanged_axes_are_named_and_nonsense_is_called_so() -> None:
    rgb, xy = _section()
    with pytest.raises(ScaleError, match="x and y exchanged"):
        frames.check_frame(xy[:, ::-1], rgb, **CHECK)
    corner = np.random.default_rng(0).uniform([560, 10], [690, 120], (200, 2))
    with pytest.raises(ScaleError, match=r"only 0 of 200 spots \(0%\) lie on tissue"):
        frames.check_frame(corner, rgb, **CHECK)


def test_a_picture_without_background_is_judged_by_its_edges_only() -> None:
    rgb = np.full((300, 300, 3), (190, 110, 170), np.uint8)
    xy = np.random.default_rng(0).uniform(20, 280, (100, 2))
    assert np.isnan(frames.check_frame(xy, rgb, **CHECK).on_tissue)
    with pytest.raises(ScaleError, match="inside the image"):
        frames.check_frame(xy * 3, rgb, **CHECK)
