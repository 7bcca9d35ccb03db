"""Every encoder keeps the same promises."""

from __future__ import annotations

import dataclasses
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


SMALL = {
    "tiny-uni": ("uni", {"dim": 32, "depth": 2, "heads": 4, "patch": 14, "layer_scale": True}, 32),
    "tiny-virchow2": ("virchow2", {"dim": 32, "depth": 2, "heads": 4, "patch": 14, "registers": 4, "gated": True}, 64),
    "tiny-gigapath": ("gigapath", {"dim": 32, "depth": 2, "heads": 4, "patch": 8, "trained_px": 112}, 32),
    "tiny-clip": ("clip", {"dim": 32, "depth": 2, "heads": 4, "patch": 8, "pre_norm": True, "projection": 8}, 8),
    "tiny-resnet": ("resnet50-hest", {"depth": 18, "stages": 3}, 256),
}
"""Hub encoders with their own input rule and pooling but a small random network."""


@pytest.fixture(scope="module", params=[*RUNNABLE, *SMALL, "lite0-multi2+shell+colour"])
def encoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> encoders.Encoder:
    from stainseq._settings import settings
    from stainseq.encoders import build

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(settings, "cache_dir", tmp_path_factory.mktemp("graphs"))
        if request.param in SMALL:
            base, arch, dim = SMALL[request.param]
            small = dataclasses.replace(encoders.spec(base), name=request.param, arch=arch, dim=dim, input_px=56)
            patch.setattr(build, "spec", lambda name: small)
            return encoders.load(request.param, device="cpu", random_weights_seed=3)
        encoder = encoders.load(request.param, device="cpu", n_threads=2)
        # Both graphs now, while the cache is there.
        assert encoder.token_dim > 0
        return encoder


def test_it_is_an_encoder(encoder: encoders.Encoder) -> None:
    assert isinstance(encoder, encoders.Encoder)
    if encoder.name not in SMALL:
        assert encoder.spec == encoders.spec(encoder.name)
    assert (encoder.dim, encoder.input_px, encoder.fields_um, encoder.device) == (
        encoder.spec.dim, encoder.spec.input_px, encoder.spec.fields_um, "cpu")  # fmt: skip
    assert len(encoder.fingerprint()) == 32
    assert encoder.spec.summary


def test_vectors(encoder: encoders.Encoder) -> None:
    batch = windows(3, encoder.spec)
    kept = batch.copy()
    out = encoder(batch)
    assert out.shape == (3, encoder.dim)
    assert out.dtype == np.float32
    assert np.isfinite(out).all()
    assert (batch == kept).all()
    assert out.std(0).max() > 0
    if len(encoder.fields_um) == 1:
        assert np.array_equal(encoder(batch[:, 0]), out)


def test_the_same_result_whatever_the_batch(encoder: encoders.Encoder) -> None:
    batch = windows(11 if encoder.name in SMALL else 4, encoder.spec, seed=1)
    whole = encoder(batch)
    assert np.array_equal(encoder(batch), whole)
    assert np.array_equal(np.concatenate([encoder(batch[:2]), encoder(batch[2:])]), whole)
    assert np.array_equal(encoder(batch[::-1])[::-1], whole)
    assert np.array_equal(encoder(batch[:1][::-1]), whole[:1])
    assert np.array_equal(encoder(np.asfortranarray(batch[:2])), whole[:2])


def test_the_same_bytes_however_many_threads(encoder: encoders.Encoder) -> None:
    if encoder.name in SMALL or "+" in encoder.name:
        pytest.skip("torch keeps its own threads; members are tested on their own")
    batch = windows(3, encoder.spec, seed=2)
    alone = encoders.load(encoder.name, device="cpu", n_threads=1)
    assert np.array_equal(alone(batch), encoder(batch))
    assert alone.fingerprint() == encoder.fingerprint()


def test_every_runtime_agrees(encoder: encoders.Encoder) -> None:
    if encoder.name in SMALL or "+" in encoder.name or encoder.spec.family == "colour":
        pytest.skip("runs in one runtime only")
    if encoder.name in ("lite0", "lite0-multi2", "lite0-multi224", "morphology2"):
        pytest.skip("the same network as lite0-multi or morphology")
    batch = windows(1, encoder.spec, seed=3)
    want, want_tokens = encoder(batch), encoder.tokens(batch)
    for runtime in ("torch", "openvino", *(("onnxruntime",) if encoder.spec.family == "morphology" else ())):
        if runtime == "openvino":
            pytest.importorskip("openvino", reason="OpenVINO is an optional extra")
        other = encoders.load(encoder.name, device="cpu", runtime=runtime)
        assert other.fingerprint() != encoder.fingerprint()
        for got, wanted in ((other(batch), want), (other.tokens(batch), want_tokens)):
            error = np.abs(got - wanted) / np.maximum(np.abs(wanted).max(), 1)
            # Comparisons (is this pixel a maximum?) may flip where two numbers are equal but for rounding.
            assert np.quantile(error, 0.999) < 1e-4
            assert error.max() < (0.05 if encoder.spec.family == "morphology" else 1e-4)


def test_tokens(encoder: encoders.Encoder) -> None:
    batch = windows(2, encoder.spec)
    out = encoder.tokens(batch)
    assert out.shape == (2, *encoder.token_grid, encoder.token_dim)
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
    rows, columns = encoder.token_grid
    assert y < rows / 3
    assert x >= columns * 2 / 3


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
