"""Every encoder keeps the same promises."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from stainseq import encoders
from stainseq.encoders.description import needs
from stainseq.errors import InputError, MissingError

OFFLINE = [n for n in encoders.spec_names() if encoders.spec(n).loader in ("builtin", "shipped", "wheel")]
RUNNABLE = [n for n in OFFLINE if not needs(encoders.spec(n))]


def windows(n: int, spec: encoders.EncoderSpec, seed: int = 0) -> np.ndarray:
    """Smooth pink and purple noise, a little like stained tissue."""
    rng = np.random.default_rng(seed)
    shape = (n, len(spec.fields_um))
    coarse = rng.random((*shape, spec.input_px // 8 + 1, spec.input_px // 8 + 1, 1))
    fine = coarse.repeat(8, 2).repeat(8, 3)[:, :, : spec.input_px, : spec.input_px]
    pink, purple = np.array([230, 170, 200.0]), np.array([110, 70, 150.0])
    image = pink * fine + purple * (1 - fine) + rng.normal(0, 8, (*fine.shape[:-1], 3))
    return np.clip(image, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module", params=RUNNABLE)
def encoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> encoders.Encoder:
    from stainseq._settings import settings

    before = settings.cache_dir
    settings.cache_dir = tmp_path_factory.mktemp("graphs")
    try:
        return encoders.load(request.param, device="cpu")
    finally:
        settings.cache_dir = before


def test_it_is_an_encoder(encoder: encoders.Encoder) -> None:
    assert isinstance(encoder, encoders.Encoder)
    assert encoder.spec is encoders.spec(encoder.name)
    assert (encoder.dim, encoder.input_px, encoder.fields_um, encoder.device) == (
        encoder.spec.dim, encoder.spec.input_px, encoder.spec.fields_um, "cpu")  # fmt: skip
    assert len(encoder.fingerprint()) == 32


def test_vectors(encoder: encoders.Encoder) -> None:
    batch = windows(5, encoder.spec)
    kept = batch.copy()
    out = encoder(batch)
    assert out.shape == (5, encoder.dim)
    assert out.dtype == np.float32
    assert np.isfinite(out).all()
    assert (batch == kept).all()
    assert out.std(0).max() > 0
    if len(encoder.fields_um) == 1:
        assert np.array_equal(encoder(batch[:, 0]), out)


def test_the_same_bytes_whatever_the_batch(encoder: encoders.Encoder) -> None:
    batch = windows(19, encoder.spec, seed=1)
    whole = encoder(batch)
    assert np.array_equal(encoder(batch), whole)
    assert np.array_equal(np.concatenate([encoder(batch[:2]), encoder(batch[2:])]), whole)
    assert np.array_equal(encoder(batch[::-1])[::-1], whole)
    assert np.array_equal(encoder(np.asfortranarray(batch[:2])), whole[:2])


def test_tokens(encoder: encoders.Encoder) -> None:
    batch = windows(3, encoder.spec)
    out = encoder.tokens(batch)
    assert out.shape == (3, *encoder.token_grid, encoder.token_dim)
    assert out.dtype == np.float32
    assert np.isfinite(out).all()
    assert np.array_equal(encoder.tokens(batch[1:2]), out[1:2])


def test_tokens_lie_where_the_image_does(encoder: encoders.Encoder) -> None:
    plain = np.full_like(windows(1, encoder.spec), 235)
    marked = plain.copy()
    side = encoder.input_px
    marked[:, 0, side // 16 : side // 5, -side // 5 : -side // 16] = (90, 50, 140)
    change = np.abs(encoder.tokens(marked) - encoder.tokens(plain))[0]
    y, x = np.unravel_index(change.sum(-1).argmax(), encoder.token_grid)
    assert y < encoder.token_grid[0] / 3
    assert x >= encoder.token_grid[1] * 2 / 3


def test_empty_batch(encoder: encoders.Encoder) -> None:
    assert encoder(windows(1, encoder.spec)[:0]).shape == (0, encoder.dim)


def test_blank_and_dark_windows_are_finite(encoder: encoders.Encoder) -> None:
    batch = np.zeros_like(windows(2, encoder.spec))
    batch[1] = 255
    assert np.isfinite(encoder(batch)).all()
    assert np.isfinite(encoder.tokens(batch)).all()


def test_wrong_windows_are_refused(encoder: encoders.Encoder) -> None:
    batch = windows(2, encoder.spec)
    with pytest.raises(InputError, match="not uint8"):
        encoder(batch.astype(np.float32))
    with pytest.raises(InputError, match=f"{encoder.input_px} x {encoder.input_px}"):
        encoder(batch[:, :, :-1])
    with pytest.raises(InputError, match="shape"):
        encoder(batch[:, :, :, :, :1])


def test_unknown_name() -> None:
    with pytest.raises(MissingError, match="lite0-multi2"):
        encoders.load("nothing-like-it")
    with pytest.raises(MissingError):
        encoders.spec("../pyproject")


def test_listing_imports_nothing_heavy() -> None:
    code = (
        "import sys; from stainseq import encoders, registry; rows = encoders.describe_all(); "
        "assert rows and encoders.default_name() in registry.names('encoders'); "
        "heavy = {'torch', 'onnxruntime', 'onnx', 'cv2', 'numba', 'scipy', 'pandas', 'transformers', "
        "'huggingface_hub', 'timm'} & set(sys.modules); print(sorted(heavy))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
