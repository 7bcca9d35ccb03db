"""Features from dense maps: against brute force, planted pictures, and windows computed apart."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from stainseq import dense, encoders
from stainseq._settings import settings
from stainseq.core.dense import cores_needed, mirrored, square_means
from stainseq.errors import InputError, ScaleError
from stainseq.image import LevelStack, read_frame
from stainseq.regions.grid import Grid
from stainseq.regions.model import Region

MPP, PX, TOKENS = 0.5, 64, 16


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(settings, "cache_dir", tmp_path / "cache")
    return tmp_path / "cache"


class Blurred:
    """Tokens of 4 px that see 8 px around them: mean colour, and its contrast to the surroundings."""

    name, device = "blurred", "cpu"
    input_px, token_grid, fields_um = PX, (TOKENS, TOKENS), (PX * MPP,)
    dim = token_dim = 6

    def __init__(self, fail_after: int | None = None) -> None:
        self.windows, self.fail_after = 0, fail_after

    def fingerprint(self) -> str:
        return "blurred-v1"

    def tokens(self, batch: np.ndarray) -> np.ndarray:
        import cv2

        self.windows += len(batch)
        if self.fail_after is not None and self.windows > self.fail_after:
            raise KeyboardInterrupt
        k = PX // TOKENS
        out = np.empty((len(batch), TOKENS, TOKENS, 6), np.float32)
        for i, image in enumerate(batch[:, 0].astype(np.float32)):
            wide = cv2.blur(image, (9, 9), borderType=cv2.BORDER_CONSTANT)
            for j, one in enumerate((image, image - wide)):
                out[i, ..., 3 * j : 3 * j + 3] = one.reshape(TOKENS, k, TOKENS, k, 3).mean((1, 3))
        return out

    def __call__(self, batch: np.ndarray) -> np.ndarray:
        return self.tokens(batch).mean((1, 2))


def picture(height: int = 300, width: int = 420, seed: int = 0) -> np.ndarray:
    import cv2

    rng = np.random.default_rng(seed)
    small = rng.integers(0, 255, (height // 6, width // 6, 3), dtype=np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def stack(rgb: np.ndarray, to_um: np.ndarray | None = None) -> LevelStack:
    levels = (np.ascontiguousarray(np.moveaxis(rgb, -1, 0)),)
    to_um = np.diag([MPP, MPP, 1.0]) if to_um is None else to_um
    mpp = float(np.sqrt(abs(np.linalg.det(to_um[:2, :2]))))
    return LevelStack(levels, (1.0,), to_um, mpp, f"picture-{rgb.astype(np.int64).sum()}-{rgb.shape}")


def grid(shape: tuple[int, int], pitch_um: float, keep: Any = None, to_um: np.ndarray | None = None) -> Region:
    rows, cols = (a.ravel() for a in np.indices(shape))
    if keep is not None:
        rows, cols = rows[keep(rows, cols)], cols[keep(rows, cols)]
    transform = (np.eye(3) if to_um is None else to_um) @ np.diag([pitch_um, pitch_um, 1.0])
    centres = np.column_stack([cols + 0.5, rows + 0.5, np.ones(len(rows))]) @ transform.T
    geometry = Grid(rows.astype(np.int32), cols.astype(np.int32), shape, transform)
    return Region("bins", "grid", centres[:, :2], geometry, lambda: np.arange(len(rows)).astype(str))


def brute(values: np.ndarray, weight: np.ndarray, x: float, y: float, side: float) -> tuple[np.ndarray, float]:
    """Mean over a square, token by token."""
    edges = [np.clip(np.minimum(c + side / 2, np.arange(n) + 1) - np.maximum(c - side / 2, np.arange(n)), 0, None)
             for c, n in ((y, values.shape[0]), (x, values.shape[1]))]  # fmt: skip
    share = np.outer(*edges) * weight
    kept = np.where(weight[..., None] > 0, values, 0)
    total = share.sum()
    return (share[..., None] * kept).sum((0, 1)) / max(total, 1e-30), total / side**2


@pytest.mark.parametrize("band_bytes", [1, 20_000, 1 << 26])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_square_means_are_those_of_brute_force(band_bytes: int, dtype: str) -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(3, 2, (37, 23, 5)).astype(dtype)
    weight = (rng.random((37, 23)) * (rng.random((37, 23)) > 0.4)).astype(np.float32)
    values[weight == 0] = np.nan
    at, sides = rng.uniform(-2, [25, 39], (80, 2)), (1.3, 4.0, 9.7)
    out, coverage = np.zeros((80, 15), np.float32), np.zeros((80, 3), np.float32)
    square_means(values, [weight] * 3, at, sides, out=out, coverage=coverage, n_jobs=2, band_bytes=band_bytes)
    for i, (x, y) in enumerate(at):
        for s, side in enumerate(sides):
            mean, share = brute(values.astype(float), weight, x, y, side)
            assert coverage[i, s] == pytest.approx(share, abs=1e-6)
            if share > 1e-5:
                assert np.allclose(out[i, 5 * s : 5 * s + 5], mean, rtol=1e-4, atol=1e-4)


def test_where_nothing_counts_the_nearest_token_stands_in() -> None:
    values = np.arange(5, dtype=np.float32)[None, :, None].repeat(3, 0)
    weight = np.zeros((3, 5), np.float32)
    weight[1, 1] = 1
    out, coverage = np.zeros((2, 2), np.float32), np.zeros((2, 2), np.float32)
    square_means(values, [weight, weight * 0], np.array([[4.5, 0.5], [1.5, 1.5]]), (1, 3), out=out, coverage=coverage)
    assert (out == 1).all()
    assert coverage.tolist() == [[0, 0], [1, 0]]
    weight[2, 4] = 1
    out, coverage = np.zeros((4, 1), np.float32), np.zeros((4, 1), np.float32)
    at = np.array([[9.5, 2.5], [-5.0, 1.5], [9.5, 4.5], [3.5, 2.5]])
    square_means(values, [weight], at, (1,), out=out, coverage=coverage)
    assert out.ravel().tolist() == [4, 1, 4, 4]


def test_needed_cores_are_those_that_squares_touch() -> None:
    rng = np.random.default_rng(1)
    at = rng.uniform(0, [50, 30], (9, 2))
    got = cores_needed(at, 6.0, 4, (8, 13))
    for i in range(8):
        for j in range(13):
            touched = ((at[:, 1] + 3 > 4 * i) & (at[:, 1] - 3 < 4 * i + 4) & (at[:, 0] + 3 > 4 * j)
                       & (at[:, 0] - 3 < 4 * j + 4)).any()  # fmt: skip
            assert got[i, j] == touched


def test_frames_are_mirrored_at_the_edge() -> None:
    rgb = picture()
    out = read_frame(stack(rgb), np.array([[MPP, 0, -20 * MPP], [0, MPP, -30 * MPP], [0, 0, 1]]), (100, 90))
    rows, cols = mirrored(np.arange(-30, 60), 300), mirrored(np.arange(-20, 80), 420)
    assert np.array_equal(out, rgb[rows][:, cols])
    assert mirrored(np.array([-3, -1, 0, 2, 3, 5, 6, 7]), 3).tolist() == [2, 0, 0, 2, 2, 0, 0, 1]


def run(rgb: np.ndarray, where: Region, encoder: Any = None, to_um: np.ndarray | None = None, **more: Any) -> Any:
    return dense.encode(stack(rgb, to_um), where, encoder or Blurred(), **more)


def test_tokens_of_a_superpixel_are_its_features() -> None:
    """Seamless: what windows with a halo give is what the whole picture at once gives."""
    import cv2

    rgb = picture()
    where = grid((75, 105), 2.0)
    values, info = run(rgb, where, scales_um=(2.0, 10.0))
    image = rgb.astype(np.float32)
    wide = cv2.blur(image, (9, 9), borderType=cv2.BORDER_REFLECT)
    whole = np.concatenate([image, image - wide], -1).reshape(75, 4, 105, 4, 6).mean((1, 3))
    assert values.shape == (75 * 105, 12)
    assert np.abs(values[:, :6].reshape(75, 105, 6) - whole).max() < 0.13  # float16 of 255
    for i in (0, 3, 104, 4000, 75 * 105 - 1):
        mean, share = brute(whole, np.ones((75, 105)), i % 105 + 0.5, i // 105 + 0.5, 5.0)
        assert np.abs(values[i, 6:] - mean).max() < 0.2
        assert info.coverage[i] == pytest.approx([1, share], abs=1e-5)


def test_a_plain_picture_has_plain_features_up_to_its_border() -> None:
    rgb = np.broadcast_to(np.array([180, 120, 160], np.uint8), (300, 420, 3)).copy()
    values, info = run(rgb, grid((75, 105), 2.0), scales_um=(2.0, 10.0, 40.0))
    assert np.abs(values - values[0]).max() < 1e-2
    assert np.abs(values[0] - [*[180, 120, 160, 0, 0, 0] * 3]).max() < 0.1
    assert info.coverage[0] == pytest.approx([1, (3 / 5) ** 2, (21 / 40) ** 2], abs=1e-5)
    assert info.coverage.max() == pytest.approx(1)


def test_a_shifted_picture_has_shifted_features() -> None:
    rgb = picture(seed=2)
    values = [np.asarray(run(part, grid((75, 100), 2.0), scales_um=(2.0, 10.0))[0]).reshape(75, 100, 12)
              for part in (rgb[:, :400], rgb[:, 8:408])]  # fmt: skip
    inner = slice(8, -8)
    assert np.abs(values[0][inner, 10:-8] - values[1][inner, 8:-10]).max() < 1e-3


def test_two_halves_are_the_whole() -> None:
    rgb = picture(seed=3)
    whole, _ = run(rgb, grid((75, 105), 2.0), scales_um=(2.0, 10.0))
    left = grid((75, 105), 2.0, lambda r, c: c < 50)
    right = grid((75, 105), 2.0, lambda r, c: c >= 50)
    halves = [np.asarray(run(rgb, part, scales_um=(2.0, 10.0))[0]) for part in (left, right)]
    joined = np.concatenate([h.reshape(75, -1, 12) for h in halves], axis=1)
    assert np.array_equal(joined, np.asarray(whole).reshape(75, 105, 12))


@pytest.mark.parametrize("encoder", ["shell", "colour"])
def test_features_do_not_depend_on_what_else_is_asked_for(encoder: str) -> None:
    """SHELL scales by constants of the slide: these must not come from the regions at hand."""
    image, where, network = stack(picture()), grid((10, 14), 12.0), encoders.load(encoder)
    some = np.arange(25, 60)
    whole, part = dense.encode(image, where, network)[0], dense.encode(image, where.take(some), network)[0]
    np.testing.assert_array_equal(whole[some], part)
    assert dense.encode(image, where.take(some[:0]), network)[0].shape == (0, whole.shape[1])


def test_a_grid_along_a_turned_picture_is_read_along_its_axes() -> None:
    rgb = picture(seed=4)
    turned = np.array([[0, -MPP, 150], [MPP, 0, 7], [0, 0, 1]])
    plain, _ = run(rgb, grid((75, 105), 2.0), scales_um=(2.0, 10.0))
    other, _ = run(rgb, grid((75, 105), 2.0, to_um=turned / MPP @ np.diag([1, 1, MPP])), to_um=turned,
                   scales_um=(2.0, 10.0))  # fmt: skip
    assert np.array_equal(plain, other)


def test_points_take_squares_anywhere() -> None:
    """Cells, whose centres follow no grid."""
    rgb = picture(seed=5)
    xy = np.random.default_rng(0).uniform(20, [190, 130], (30, 2))
    where = Region("cells", "shapes", xy, SimpleNamespace(), lambda: np.arange(30).astype(str))  # type: ignore[arg-type]
    values, info = run(rgb, where, scales_um=(3.0, 12.0))
    tokens = rgb.astype(float).reshape(75, 4, 105, 4, 3).mean((1, 3))
    for i, (x, y) in enumerate(xy):
        for s, side in enumerate((3.0, 12.0)):
            mean, _ = brute(tokens, np.ones((75, 105)), x / 2, y / 2, side / 2)
            assert np.abs(values[i, 6 * s : 6 * s + 3] - mean).max() < 0.2
    assert info.coverage == pytest.approx(1)


def test_regions_off_the_slide_have_no_coverage_and_no_nan() -> None:
    rgb = picture(seed=6)
    values, info = run(rgb, grid((80, 105), 2.0), scales_um=(2.0, 10.0))
    last = np.asarray(values).reshape(80, 105, 12)
    assert np.isfinite(values).all()
    assert (info.coverage.reshape(80, 105, 2)[75:, :, 0] == 0).all()
    assert np.array_equal(last[77, :, :6], last[74, :, :6])


def test_glass_does_not_count_in_contexts() -> None:
    rgb = np.full((600, 840, 3), 245, np.uint8)
    rgb[:, :420] = picture(600, 420, seed=7) // 3 + 60
    where = grid((150, 210), 2.0, lambda r, c: c < 105)
    values, info = run(rgb, where, scales_um=(2.0, 40.0))
    share = info.coverage.reshape(150, 105, 2)[75]
    assert share[50, 1] > 0.95
    assert share[104, 1] < 0.75
    assert np.asarray(values).reshape(150, 105, 12)[75, 104, 6:9].max() < 190


def test_it_resumes_and_is_cached() -> None:
    rgb = picture(seed=8)
    where, options = grid((75, 105), 2.0), {"scales_um": (2.0, 10.0)}
    expected = np.array(run(rgb, where, **options)[0])
    again = Blurred()
    values, info = run(rgb, where, again, **options)
    assert (again.windows, info.encoded) == (0, 0)
    assert info.coverage[0, 1] < 1
    other = picture(seed=9)
    with pytest.raises(KeyboardInterrupt):
        run(other, where, Blurred(fail_after=40), **options)
    rest = Blurred()
    values, info = run(other, where, rest, **options)
    assert 0 < rest.windows == info.encoded < 15 * 10
    assert not np.array_equal(values, expected)


def test_scales_and_errors() -> None:
    where, image = grid((75, 105), 8.0), stack(picture())
    assert dense.scales_for(where, None) == (8.0, 32.0, 112.0)
    assert dense.scales_for(grid((4, 4), 30.0), None) == (30.0, 112.0)
    for wrong in ((), (8, 8), (32, 8), (0, 8), (np.nan,), (8, 1e7)):
        with pytest.raises(InputError):
            dense.scales_for(where, wrong)
    assert dense.is_fine(where, Blurred())  # type: ignore[arg-type]
    assert not dense.is_fine(grid((4, 4), 8.1), Blurred())  # type: ignore[arg-type]
    coarse = LevelStack(image.levels, (1.0,), np.diag([5.0, 5.0, 1]), 5.0, "coarse")
    with pytest.raises(ScaleError, match="um/px"):
        dense.encode(coarse, where, Blurred())  # type: ignore[arg-type]
    lost = Region("lost", "shapes", np.array([[np.nan, 1.0]]), SimpleNamespace(), lambda: np.array(["a"]))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="not finite"):
        dense.encode(image, lost, Blurred())  # type: ignore[arg-type]
