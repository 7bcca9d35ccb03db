"""The feature engine with a small encoder whose answer is known in closed form."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stainseq import engine
from stainseq._settings import settings
from stainseq.errors import InputError, ScaleError, StoreError
from stainseq.image import LevelStack, read_box, read_window


class MeanColour:
    """Mean colour of each field; counts its calls and can be told to fail."""

    name, fields_um, input_px, token_grid = "mean-colour", (32.0, 64.0), 32, (8, 8)
    device = "cpu"

    def __init__(self, fail_after: int | None = None) -> None:
        self.calls, self.fail_after = 0, fail_after
        self.dim = self.token_dim = 3 * len(self.fields_um)

    def fingerprint(self) -> str:
        return "mean-colour-v1"

    def __call__(self, batch: np.ndarray) -> np.ndarray:
        self.calls += 1
        if self.fail_after is not None and self.calls > self.fail_after:
            raise KeyboardInterrupt
        return batch.mean(axis=(2, 3)).reshape(len(batch), -1).astype(np.float32)

    def tokens(self, batch: np.ndarray) -> np.ndarray:
        n, s = len(batch), self.input_px // 8
        one = batch[:, 0].reshape(n, 8, s, 8, s, 3).mean(axis=(2, 4)).astype(np.float32)
        return np.concatenate([one, -one], axis=-1)


def pyramid(height: int = 600, width: int = 800, mpp: float = 0.7, seed: int = 0) -> LevelStack:
    import cv2

    rng = np.random.default_rng(seed)
    base = cv2.resize(rng.integers(0, 255, (30, 40, 3), dtype=np.uint8), (width, height), interpolation=cv2.INTER_CUBIC)
    half = cv2.resize(base, (width // 2, height // 2), interpolation=cv2.INTER_AREA)
    levels = tuple(np.ascontiguousarray(np.moveaxis(a, -1, 0)) for a in (base, half))
    return LevelStack(levels, (1.0, 2.0), np.diag([mpp, mpp, 1.0]), mpp, f"pyramid-{seed}")


def points(n: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).uniform([60, 60], [490, 360], (n, 2))


def test_vectors_equal_windows_read_one_by_one() -> None:
    image, encoder, xy = pyramid(), MeanColour(), points(75)
    values, run = engine.encode_points(image, xy, encoder, batch_size=16)
    assert values.shape == (75, 6)
    assert run.encoded == 75
    for i in (0, 31, 74):
        for k, um in enumerate(encoder.fields_um):
            window = read_window(image, xy[i], size_px=32, mpp=um / 32)
            np.testing.assert_allclose(values[i, 3 * k : 3 * k + 3], window.mean(axis=(0, 1)), rtol=1e-5)


def test_second_run_encodes_nothing_and_other_content_is_another_entry() -> None:
    xy = points(40)
    first, _ = engine.encode_points(pyramid(), xy, MeanColour())
    again = MeanColour()
    second, run = engine.encode_points(pyramid(), xy, again)
    assert (again.calls, run.encoded) == (0, 0)
    np.testing.assert_array_equal(first, second)
    for image, where in ((pyramid(seed=3), xy), (pyramid(), xy + 1.0)):
        other = MeanColour()
        engine.encode_points(image, where, other)
        assert other.calls > 0


@pytest.mark.parametrize("fail_after", [0, 1, 4])
def test_interrupted_run_resumes_to_the_same_bytes(
    fail_after: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    xy = points(100)
    expected = np.array(engine.encode_points(pyramid(), xy, MeanColour(), batch_size=16)[0])
    monkeypatch.setattr(settings, "cache_dir", tmp_path / "other")
    with pytest.raises(KeyboardInterrupt):
        engine.encode_points(pyramid(), xy, MeanColour(fail_after), batch_size=16)
    rest = MeanColour()
    values, run = engine.encode_points(pyramid(), xy, rest, batch_size=16)
    assert rest.calls == 7 - fail_after
    assert run.encoded == 100 - 16 * fail_after
    np.testing.assert_array_equal(values, expected)


def test_half_a_journal_line_does_not_count() -> None:
    xy = points(64)
    values, run = engine.encode_points(pyramid(), xy, MeanColour(), batch_size=16)
    expected = np.array(values)
    journal = run.path.with_name("journal")
    journal.write_bytes(b"32\n4")
    again = MeanColour()
    values, run = engine.encode_points(pyramid(), xy, again, batch_size=16)
    assert again.calls == 2
    np.testing.assert_array_equal(values, expected)


def test_lines_after_half_a_journal_line_are_not_joined_to_it() -> None:
    xy = points(16 * 12)
    _, run = engine.encode_points(pyramid(), xy, MeanColour(), batch_size=16)
    journal = run.path.with_name("journal")
    journal.write_bytes(b"1")
    # As a second interrupted run would find it: "1" and the line "16" must not become 116 finished windows.
    with pytest.raises(KeyboardInterrupt):
        engine.encode_points(pyramid(), xy, MeanColour(fail_after=1), batch_size=16)
    again = MeanColour()
    engine.encode_points(pyramid(), xy, again, batch_size=16)
    assert again.calls == 11


def test_batch_size_changes_neither_the_cache_entry_nor_a_byte(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from stainseq import encoders

    image, xy = pyramid(), points(23)
    encoder = encoders.load("random-resnet18", device="cpu", runtime="torch")
    expected, run = engine.encode_points(image, xy, encoder)
    expected = np.array(expected)
    again = engine.encode_points(image, xy, encoder, batch_size=5)[1]
    assert (again.key, again.encoded) == (run.key, 0)
    monkeypatch.setattr(settings, "cache_dir", tmp_path / "other")
    left = iter([False] * 8 + [True])
    forward = encoder.backend.vectors  # type: ignore[attr-defined]

    def stopping(images: np.ndarray) -> np.ndarray:
        if next(left):
            raise KeyboardInterrupt
        return forward(images)

    with monkeypatch.context() as patch:
        patch.setattr(encoder.backend, "vectors", stopping)  # type: ignore[attr-defined]
        with pytest.raises(KeyboardInterrupt):
            engine.encode_points(image, xy, encoder, batch_size=5)
    values, rest = engine.encode_points(image, xy, encoder, batch_size=7)
    assert (rest.key, rest.encoded) == (run.key, 18)
    np.testing.assert_array_equal(values, expected)


def test_a_map_does_not_depend_on_the_batch_size(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    image, box = pyramid(mpp=1.0), (20.0, 30.0, 420.0, 330.0)
    expected, _, run = engine.encode_map(image, box, MeanColour(), batch_size=5)
    expected = np.array(expected)
    monkeypatch.setattr(settings, "cache_dir", tmp_path / "other")

    class Stopping(MeanColour):
        def tokens(self, batch: np.ndarray) -> np.ndarray:
            self.calls += 1
            if self.calls > 3:
                raise KeyboardInterrupt
            return super().tokens(batch)

    with pytest.raises(KeyboardInterrupt):
        engine.encode_map(image, box, Stopping(), batch_size=7)
    values, _, rest = engine.encode_map(image, box, MeanColour(), batch_size=4)
    assert (rest.key, rest.encoded) == (run.key, run.encoded - 21)
    np.testing.assert_array_equal(values, expected)


def test_interruption_leaves_no_thread_behind() -> None:
    """A thread in a codec while the interpreter shuts down aborts the process."""
    import threading

    with pytest.raises(KeyboardInterrupt):
        engine.encode_points(pyramid(seed=6), points(320), MeanColour(fail_after=1), batch_size=16)
    assert not [t.name for t in threading.enumerate() if t.name.startswith("stainseq-")]


def test_no_regions_gives_an_empty_table() -> None:
    values, run = engine.encode_points(pyramid(), np.empty((0, 2)), MeanColour())
    assert values.shape == (0, 6)
    assert run.encoded == 0


def test_beyond_the_edge_is_white() -> None:
    image = pyramid()
    window = read_window(image, np.array([0.0, 0.0]), size_px=32, mpp=0.7)
    assert (window[:14, :14] == 255).all()
    assert not (window[18:, 18:] == 255).all()
    far = read_window(image, np.array([-5000.0, 0.0]), size_px=32, mpp=0.7)
    assert (far == 255).all()


@pytest.mark.parametrize("halo", [0, 2, 3])
def test_dense_map_has_no_seams_and_equals_pixels(halo: int) -> None:
    image, encoder = pyramid(mpp=1.0), MeanColour()
    box = (20.0, 30.0, 420.0, 330.0)
    tokens, to_um, _ = engine.encode_map(image, box, encoder, halo_tokens=halo, batch_size=5)
    assert tokens.shape == (75, 100, 6)
    np.testing.assert_allclose(to_um, [[4, 0, 20], [0, 4, 30], [0, 0, 1]])
    pixels = read_box(image, box, mpp=1.0).astype(float)
    expected = pixels.reshape(75, 4, 100, 4, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(tokens[..., :3].astype(float), expected, atol=0.2)


def test_what_half_precision_cannot_hold_is_its_largest(monkeypatch: pytest.MonkeyPatch) -> None:
    image, encoder = pyramid(mpp=1.0), MeanColour()
    small = encoder.tokens
    monkeypatch.setattr(encoder, "tokens", lambda batch: small(batch) * 1e5)
    tokens, _, _ = engine.encode_map(image, (0, 0, 100, 100), encoder)
    assert tokens.max() == np.finfo(np.float16).max


def test_dense_map_skips_unwanted_windows() -> None:
    image, encoder = pyramid(mpp=1.0), MeanColour()
    tokens, _, run = engine.encode_map(image, (0, 0, 320, 320), encoder, keep=lambda b: b[0] < 100)
    assert np.isnan(tokens[:, -1]).all()
    assert np.isfinite(tokens[:, 0]).all()
    assert 0 < run.encoded < 400


def test_bad_input_is_refused() -> None:
    xy = points(5)
    xy[2, 0] = np.nan
    with pytest.raises(InputError, match="1 region centres are not finite"):
        engine.encode_points(pyramid(), xy, MeanColour())
    with pytest.raises(InputError, match="batch_size=0"):
        engine.encode_points(pyramid(), points(5), MeanColour(), batch_size=0)
    with pytest.raises(ScaleError, match=r"40\.00 um/px"):
        engine.encode_points(pyramid(mpp=40.0), points(5), MeanColour())

    class Broken(MeanColour):
        def __call__(self, batch: np.ndarray) -> np.ndarray:
            return np.full((len(batch), 6), np.nan, dtype=np.float32)

    with pytest.raises(InputError, match="not finite"):
        engine.encode_points(pyramid(seed=9), points(5), Broken())


def test_reader_errors_reach_the_caller() -> None:
    image = pyramid(seed=4)

    class Torn:
        shape, chunks = image.levels[0].shape, (3, 64, 64)

        def __getitem__(self, item: object) -> np.ndarray:
            raise ValueError("truncated chunk")

    torn = LevelStack((Torn(),), (1.0,), image.to_um, image.mpp, "torn")
    with pytest.raises(ValueError, match="truncated chunk"):
        engine.encode_points(torn, points(5), MeanColour())


def test_full_disk_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    def full(*a: object, **k: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np.lib.format, "open_memmap", full)
    with pytest.raises(StoreError, match="feature cache cannot be written"):
        engine.encode_points(pyramid(seed=5), points(5), MeanColour())
