"""Encoders taken apart for dense maps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stainseq import encoders
from stainseq._settings import settings
from stainseq.encoders import dense
from stainseq.encoders.dense import KEPT, KEPT_EACH, has_tokens, mixing, parts, reduce
from stainseq.errors import InputError

OFFLINE = ("lite0-multi", "lite0", "morphology", "colour", "shell", "random-resnet18")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(settings, "cache_dir", tmp_path_factory.getbasetemp() / "graphs")
    return settings.cache_dir


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows as wide as those of vectors: what holds for them holds for wider ones, and takes a 16th of the time."""
    monkeypatch.setattr(dense, "WIDER", dict.fromkeys(dense.WIDER, (1, 2)))


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("name", OFFLINE)
def test_a_plain_window_has_the_same_token_everywhere(name: str) -> None:
    """No frame of zeros is seen: a place does not tell where in its window it lies."""
    if encoders.description.needs(encoders.spec(name)):
        pytest.skip(f"{name} is not installed")
    (part,) = parts(encoders.load(name, device="cpu", n_threads=1), levels=lambda: [[0.0, 1.0]] * 3)
    plain = np.broadcast_to(np.array([190, 130, 170], np.uint8), (1, 1, part.px, part.px, 3))
    tokens = part.run(np.ascontiguousarray(plain))
    assert tokens.shape == (1, part.tokens, part.tokens, part.dim)
    assert part.token_um == pytest.approx(8.0 if name != "lite0" else 16.0)
    assert np.abs(tokens - tokens[0, 0, 0]).max() <= 2e-3 * np.abs(tokens).max()


def test_tokens_beyond_the_halo_are_those_of_a_larger_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(dense.WIDER, "morphology", (1, dense.WIDER["morphology"][1]))
    rng = np.random.default_rng(0)
    (part,) = parts(encoders.load("morphology", device="cpu", n_threads=1))
    image = rng.integers(0, 255, (1, 1, part.px + 64, part.px + 64, 3), dtype=np.uint8)
    one, other = (part.run(np.ascontiguousarray(image[:, :, k : k + part.px, k : k + part.px])) for k in (0, 64))
    h = part.halo
    first, second = one[0, 4 + h : -h, 4 + h : -h], other[0, h : -4 - h, h : -4 - h]
    assert np.abs(first - second).max() < 1e-3


@pytest.mark.usefixtures("narrow")
def test_composites_and_fields_are_parts_of_their_own() -> None:
    made = parts(encoders.load("lite0-multi2+morphology+colour", device="cpu", n_threads=1))
    assert [p.name for p in made] == ["lite0-multi2@112", "lite0-multi2@224", "morphology@112", "colour@112"]
    assert [p.token_um for p in made] == [8.0, 16.0, 8.0, 8.0]
    assert [p.dim for p in made] == [16 + 6 * KEPT_EACH, 16 + 6 * KEPT_EACH, 125, 42]
    assert len({p.fingerprint() for p in made}) == 4


def test_layers_are_mixed_by_orthonormal_columns() -> None:
    for widths in ([1024], [256, 512], [16, 24, 300]):
        mixes = mixing(widths)
        assert [len(m) for m in mixes] == widths
        for m in mixes:
            assert np.abs(m.T @ m - np.eye(m.shape[1])).max() < 1e-5
            # Every channel counts, none more than others by far.
            if m.shape[0] > m.shape[1]:
                assert np.linalg.norm(m, axis=1).min() > 0.3 * np.sqrt(m.shape[1] / m.shape[0])
        tokens = np.random.default_rng(0).normal(size=(2, 3, sum(widths))).astype(np.float32)
        out = reduce(tokens, mixes)
        assert out.shape[-1] == sum(m.shape[1] for m in mixes)
        assert np.allclose(out[..., : mixes[0].shape[1]], tokens[..., : widths[0]] @ mixes[0], atol=1e-4)
    assert sum(m.shape[1] for m in mixing([2048, 1024])) == KEPT
    assert mixing([]) == []


def test_encoders_without_tokens_are_told() -> None:
    class Clip:
        spec = encoders.spec("biomedclip")

    assert not has_tokens(Clip())
    assert has_tokens(object())
    other = encoders.load("colour", device="cpu")
    other.spec = encoders.spec("biomedclip")
    with pytest.raises(InputError, match="nothing of the places"):
        parts(other)
