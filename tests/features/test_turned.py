"""Images that lie turned, mirrored, sheared or in perspective in microns: windows against brute-force sampling."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from scipy import ndimage

import stainseq as ss
from stainseq import engine, image, keys, store
from stainseq.core import registration
from stainseq.image import LevelStack

MPP = 0.7


class MeanColour:
    """Mean colour of the window; tokens of 4 x 4 pixels."""

    name, fields_um, input_px, token_grid, device, dim, token_dim = "mean", (32.0,), 32, (8, 8), "cpu", 3, 3

    def fingerprint(self) -> str:
        return "mean-colour-of-turned"

    def __call__(self, batch: np.ndarray) -> np.ndarray:
        return batch[:, 0].mean(axis=(1, 2)).astype(np.float32)

    def tokens(self, batch: np.ndarray) -> np.ndarray:
        return batch[:, 0].reshape(len(batch), 8, 4, 8, 4, 3).mean(axis=(2, 4)).astype(np.float32)


def smooth(height: int, width: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 255, (height // 12, width // 12, 3), dtype=np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def stack(pixels: np.ndarray, to_um: np.ndarray) -> LevelStack:
    half = cv2.resize(pixels, (pixels.shape[1] // 2, pixels.shape[0] // 2), interpolation=cv2.INTER_AREA)
    levels = tuple(np.ascontiguousarray(np.moveaxis(a, -1, 0)) for a in (pixels, half))
    mpp = image._mpp(to_um, np.array([[pixels.shape[1] / 2, pixels.shape[0] / 2]]))
    return LevelStack(levels, (1.0, 2.0), to_um, mpp, f"{to_um.tolist()}")


def turn(degrees: float, *, mirrored: bool = False, perspective: float = 0.0) -> np.ndarray:
    """Level-0 pixels of an image of 800 x 600 px to microns around (300, 250)."""
    a = np.radians(degrees)
    linear = MPP * np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]])
    linear = linear @ np.diag([-1.0, 1.0]) if mirrored else linear
    matrix = np.eye(3)
    matrix[:2, :2] = linear
    matrix[:2, 2] = np.array([300.0, 250.0]) - linear @ [400.0, 300.0]
    matrix[2] = [perspective, -perspective / 2, 1 - perspective * 250]
    return matrix


def sampled(opened: LevelStack, corner: np.ndarray, size: tuple[int, int], mpp: float) -> np.ndarray:
    """Each target pixel as the mean of its samples, each interpolated bilinearly in the level."""
    step = mpp / opened.mpp
    level = 1 if step >= 2 / 1.02 else 0
    down = opened.downsamples[level]
    over = 1 if step / down <= 1.001 else 2
    x, y = ((np.arange(n * over) + 0.5) / over * mpp for n in size)
    um = np.stack(np.meshgrid(corner[0] + x, corner[1] + y), axis=-1).reshape(-1, 2)
    px = registration.apply(np.linalg.inv(opened.to_um), um) / down - 0.5
    planes = [ndimage.map_coordinates(c.astype(float), px.T[::-1], order=1, mode="constant", cval=255)
              for c in opened.levels[level]]  # fmt: skip
    fine = np.stack(planes, -1).reshape(size[1], over, size[0], over, 3)
    return fine.mean((1, 3))


@pytest.mark.parametrize("mpp", [0.5, 0.7, 1.0, 1.5])
@pytest.mark.parametrize(
    "to_um", [turn(30), turn(-100), turn(5, mirrored=True), turn(0, mirrored=True), turn(20, perspective=2e-4),
              turn(0) @ np.array([[1, 0.2, 0], [0, 1.1, 0], [0, 0, 1]])],
    ids=["turned", "turned far", "turned and mirrored", "mirrored", "in perspective", "sheared"],
)  # fmt: skip
def test_windows_and_boxes_against_brute_force(to_um: np.ndarray, mpp: float) -> None:
    opened = stack(smooth(600, 800), to_um)
    assert not opened.upright
    centre = registration.apply(to_um, np.array([[420.0, 280.0]]))[0]
    np.testing.assert_allclose(opened.to_px(centre[None])[0], [420, 280], atol=1e-9)
    window = image.read_window(opened, centre, size_px=64, mpp=mpp)
    # cv2 places samples on 1/32 of a pixel and rounds; a step of 12 px from grey 0 to 255 makes that 2 levels.
    assert np.abs(window - sampled(opened, centre - 32 * mpp, (64, 64), mpp)).max() < 3
    box = (centre[0] - 40, centre[1] - 20, centre[0] + 40, centre[1] + 20)
    size = (round(80 / mpp), round(40 / mpp))
    got = image.read_box(opened, box, mpp=mpp)
    assert got.shape == (size[1], size[0], 3)
    assert np.abs(got - sampled(opened, np.array(box[:2]), size, mpp)).max() < 3


def test_a_hair_off_upright_is_read_as_it_lies() -> None:
    pixels = smooth(600, 800)
    straight, near, off = (stack(pixels, turn(d)) for d in (0, 0.1, 1))
    assert straight.upright
    assert near.upright
    assert not off.upright
    at = np.array([300.0, 250.0])
    np.testing.assert_array_equal(
        image.read_window(near, at, size_px=64, mpp=MPP), image.read_window(straight, at, size_px=64, mpp=MPP)
    )


def test_beyond_the_edge_of_a_turned_image_is_white() -> None:
    opened = stack(smooth(600, 800), turn(30))
    corner = registration.apply(opened.to_um, np.array([[0.0, 0.0]]))[0]
    window = image.read_window(opened, corner, size_px=64, mpp=MPP)
    assert (window == 255).all(axis=-1).mean() > 0.6
    assert not (window == 255).all()
    assert (image.read_window(opened, corner - 1000, size_px=64, mpp=MPP) == 255).all()


@pytest.fixture(scope="module")
def pair() -> tuple[LevelStack, LevelStack]:
    """The same tissue scanned upright and turned by 30 degrees."""
    upright = smooth(600, 800, seed=3)
    side, a = 1000, np.radians(30)
    rotation = np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]])
    # Turned pixel to upright pixel, centres on centres.
    matrix = np.eye(3)
    matrix[:2, :2] = rotation
    matrix[:2, 2] = np.array([400.0, 300.0]) - rotation @ [side / 2, side / 2]
    half = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1.0]])
    for_cv2 = np.linalg.inv(half) @ matrix @ half
    turned = cv2.warpAffine(upright, for_cv2[:2], (side, side), flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP,
                            borderValue=(255, 255, 255))  # fmt: skip
    scale = np.diag([MPP, MPP, 1.0])
    return stack(upright, scale), stack(turned, scale @ matrix)


def test_vectors_of_a_turned_slide_are_those_of_the_upright_one(pair: tuple[LevelStack, LevelStack]) -> None:
    xy = np.random.default_rng(1).uniform([60, 60], [490, 350], (40, 2))
    one, other = (engine.encode_points(i, xy, MeanColour())[0] for i in pair)
    assert np.abs(one - other).max() < 1
    assert one.std(0).min() > 3


def test_maps_of_a_turned_slide_are_those_of_the_upright_one(pair: tuple[LevelStack, LevelStack]) -> None:
    box = (100.0, 100.0, 400.0, 300.0)
    (one, to_um, _), (other, to_um_other, _) = (engine.encode_map(i, box, MeanColour()) for i in pair)
    np.testing.assert_array_equal(to_um, to_um_other)
    assert one.shape == other.shape
    assert np.abs(one.astype(float) - other.astype(float)).max() < 6
    assert np.abs(one.astype(float) - other.astype(float)).mean() < 1
    assert one[..., 0].astype(float).std() > 20


@pytest.mark.parametrize("projective", [False, True])
def test_the_transform_of_a_stored_slide_is_used(tmp_path, projective: bool) -> None:
    from spatialdata.transformations import Affine

    stored = store.create(
        tmp_path / "a.zarr", ss.datasets.toy_slide(size="small", seed=0), step="convert", parameters={}
    )
    plain = image.open_image(stored)
    exact = turn(30, perspective=1e-5 if projective else 0.0)
    near, _ = registration.nearest_affine(exact, plain.shape[::-1])
    axes = {"input_axes": ("x", "y"), "output_axes": ("x", "y")}
    more = {"projective": exact.tolist()} if projective else {}
    store.set_transformation(stored, keys.HE, Affine(near, **axes), step="align", parameters={}, more=more)
    opened = image.open_image(store.open(stored.path))
    np.testing.assert_allclose(opened.to_um, exact, atol=1e-9)
    at = np.array([[333.0, 222.0]])
    np.testing.assert_allclose(registration.apply(exact, opened.to_px(at)), at, atol=1e-6)
    window = image.read_window(opened, at[0], size_px=64, mpp=opened.mpp)
    assert np.abs(window - sampled(opened, at[0] - 32 * opened.mpp, (64, 64), opened.mpp)).max() < 3
    assert opened.fingerprint != plain.fingerprint


def test_tissue_and_grid_of_a_turned_slide_lie_where_the_tissue_is(tmp_path) -> None:
    import shapely
    from spatialdata.transformations import Affine

    stored = store.create(
        tmp_path / "a.zarr", ss.datasets.toy_slide(size="small", seed=0), step="convert", parameters={}
    )
    ss.pp.tissue(stored)
    plain = shapely.union_all(stored.shapes[keys.TISSUE].geometry.to_numpy())
    opened = image.open_image(stored)
    a = np.radians(40)
    motion = np.array([[np.cos(a), -np.sin(a), -300], [np.sin(a), np.cos(a), -500], [0, 0, 1]])
    turned = Affine(motion @ opened.to_um, input_axes=("x", "y"), output_axes=("x", "y"))
    store.set_transformation(stored, keys.HE, turned, step="align", parameters={})
    ss.pp.tissue(stored)
    found = shapely.union_all(stored.shapes[keys.TISSUE].geometry.to_numpy())
    want = shapely.transform(plain, lambda xy: registration.apply(motion, xy))
    assert found.symmetric_difference(want).area < 1e-6 * want.area
    assert found.bounds[0] < 0
    assert found.area == pytest.approx(float(stored.shapes[keys.TISSUE]["area_um2"].sum()))
    ss.pp.grid(stored, spacing_um=50)
    centres = stored.shapes[keys.GRID].geometry
    assert shapely.contains(found.buffer(26), centres.to_numpy()).all()
    assert len(centres) * 50**2 == pytest.approx(found.area, rel=0.1)
    assert centres.x.min() < 0
