"""Morphology and colour against brute force and planted truth."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from stainseq.encoders import colour, description, grids, morphology, morphology_cpu
from stainseq.encoders.composite import resize
from stainseq.encoders.layers import Percentiles, Whole, mean_std, same_padding
from stainseq.encoders.stains import HE_MATRIX, RUIFROK


@pytest.fixture(scope="module")
def net() -> morphology.Morphology:
    return morphology.Morphology(input_px=224).eval()


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    smooth = ndimage.gaussian_filter(np.random.default_rng(seed).random(shape), [0] * (len(shape) - 2) + [2, 2])
    return torch.from_numpy(smooth).float()


def test_stain_separation_gives_back_what_was_mixed() -> None:
    stains = RUIFROK / np.linalg.norm(RUIFROK, axis=1, keepdims=True)
    amounts = np.random.default_rng(0).random((100, 2))
    assert np.allclose((amounts @ stains) @ HE_MATRIX.T, np.c_[amounts, np.zeros(100)], atol=1e-12)


def test_gabor_energy(net: morphology.Morphology) -> None:
    x = noise(1, 2, 40, 40)
    bank = morphology.gabor_bank()
    assert np.abs(bank.sum((1, 2))).max() < 1e-6
    want = []
    for c in range(2):
        image = x[0, c].numpy().astype(float)
        answers = [ndimage.correlate(image, k.astype(float), mode="nearest") for k in bank]
        energy = np.stack([np.hypot(answers[2 * i], answers[2 * i + 1]) for i in range(4)])
        want.append((energy.mean(0), energy.std(0)))
    got = net.gabor(x)[0].numpy()
    for c in range(2):
        assert np.abs(got[c] - want[c][0]).max() < 2e-4
        assert np.abs(got[2 + c] - want[c][1]).max() < 2e-4


def test_binary_patterns(net: morphology.Morphology) -> None:
    x = noise(1, 1, 24, 24)
    image = np.pad(x[0, 0].numpy(), 1, mode="edge")
    want = np.zeros((10, 24, 24))
    for r in range(24):
        for c in range(24):
            bits = [int(image[r + 1 + dy, c + 1 + dx] >= image[r + 1, c + 1]) for dy, dx in morphology.RING]
            changes = sum(a != b for a, b in zip(bits, bits[1:] + bits[:1], strict=True))
            want[sum(bits) if changes <= 2 else 9, r, c] = 1
    assert np.array_equal(net.patterns(x)[0].numpy(), want)
    turned = net.patterns(torch.rot90(x, 1, (2, 3)))
    assert torch.equal(turned.mean((2, 3)), net.patterns(x).mean((2, 3)))


@pytest.mark.parametrize("size", morphology.OPENINGS)
def test_openings_and_closings(size: int) -> None:
    x = noise(1, 3, 30, 30)
    opened, closed = morphology.Morphology.opened(x, size)
    inner = slice(size, 30 - size)
    for c in range(3):
        want = ndimage.grey_opening(x[0, c].numpy(), (size, size))
        assert np.array_equal(opened[0, c].numpy()[inner, inner], want[inner, inner])
        want = ndimage.grey_closing(x[0, c].numpy(), (size, size))
        assert np.array_equal(closed[0, c].numpy()[inner, inner], want[inner, inner])


def test_planted_nuclei_are_counted(net: morphology.Morphology) -> None:
    stains = RUIFROK / np.linalg.norm(RUIFROK, axis=1, keepdims=True)
    y, x = np.mgrid[:224, :224]
    counted = {}
    for step in (56, 32, 28):
        amount = np.zeros((224, 224))
        places = np.arange(step // 2, 224, step)
        for cy in places:
            for cx in places:
                amount = np.maximum(amount, 0.6 * ((y - cy) ** 2 + (x - cx) ** 2 <= 36))
        density = amount[..., None] * stains[0] + 0.15 * stains[1]
        image = torch.from_numpy(10.0**-density).float().permute(2, 0, 1)[None]
        maps = net.maps(image)
        counted[len(places) ** 2] = int(maps["nuclei"][0].sum())
    assert all(truth == found for truth, found in counted.items())


def test_histogram_is_a_share_of_pixels(net: morphology.Morphology) -> None:
    image = torch.from_numpy(np.random.default_rng(1).random((1, 3, 224, 224))).float() * 0.4 + 0.55
    parts = net.maps(image)["histogram"][0].mean((2, 3)).view(3, morphology.BINS).sum(1)
    assert torch.all(parts <= 1 + 1e-5)
    assert parts[2] > 0.999  # mean density lies inside its range


@pytest.mark.parametrize("side", [224, 96])
def test_vectors_on_a_cpu_are_those_of_the_network(side: int) -> None:
    rng = np.random.default_rng(8)
    net, taken_apart = morphology.Morphology(input_px=side).eval(), morphology_cpu.tables()
    whole = Whole(net, mean=(0.0,) * 3, std=(1.0,) * 3, mode="vectors")
    smooth = ndimage.gaussian_filter(rng.random((side, side, 3)), (2, 2, 0))
    smooth = (smooth - smooth.min()) / np.ptp(smooth) * 255
    images = [rng.integers(0, 256, (side, side, 3)), smooth, np.full((side, side, 3), 255), np.zeros((side, side, 3))]
    for image in np.array(images, np.uint8):
        with torch.inference_mode():
            want = whole(torch.from_numpy(image[None]))[0].numpy()
        got = morphology_cpu.describe(image, taken_apart)
        assert got.dtype == np.float32
        assert got.shape == (morphology_cpu.DIM,)
        error = np.abs(got - want) / np.maximum(np.abs(want), 1)
        # A pixel of a pattern may fall on the other side where two levels are equal but for rounding.
        patterns = slice(141, 181)
        assert error[patterns].max() < 4 / (side // 4) ** 2
        error[patterns] = 0
        assert error.max() < 1e-5


def test_filters_are_sums_of_products() -> None:
    t = morphology_cpu.tables()
    mirrored = lambda half, sign=1: np.concatenate([sign * half[:0:-1], half])  # noqa: E731
    p, q, u, v, e = (mirrored(f, sign) for f, sign in zip(t.gabor, (1, -1, 1, -1, 1), strict=True))
    cc = np.outer(u, u) - t.steady * np.outer(e, e)
    bank = [np.outer(e, p), np.outer(e, q), cc - np.outer(v, v), np.outer(u, v) + np.outer(v, u),
            np.outer(p, e), np.outer(q, e), cc + np.outer(v, v), np.outer(v, u) - np.outer(u, v)]  # fmt: skip
    assert np.abs(np.array(bank) - morphology.gabor_bank()).max() < 1e-7
    for (curved, bell, bent), mean, want in zip(t.blob, t.mean, morphology.blob_bank(), strict=True):
        a, b, c = mirrored(curved), mirrored(bell), mirrored(bent)
        assert np.abs(np.outer(b, a) + np.outer(c, b) - mean - want).max() < 1e-7


def test_a_turned_window_has_the_same_description(net: morphology.Morphology) -> None:
    image = torch.from_numpy(np.random.default_rng(2).random((1, 3, 224, 224))).float()
    with torch.inference_mode():
        one, other = net.vectors(image), net.vectors(torch.rot90(image, 1, (2, 3)))
    assert (one - other).abs().max() < 1e-3


def test_colour_statistics() -> None:
    images = np.random.default_rng(3).integers(0, 256, (4, 56, 56, 3), dtype=np.uint8)
    backend = colour.ColourBackend(description.spec("colour"))
    got = backend.vectors(images).reshape(4, 6, 7)
    flat = images.reshape(4, -1, 3) / 255.0
    assert np.allclose(got[:, :3, 0], flat.mean(1), atol=1e-6)
    assert np.allclose(got[:, :3, 1], flat.std(1), atol=1e-6)
    want = np.quantile(flat, colour.QUANTILES, axis=1, method="inverted_cdf").transpose(1, 2, 0)
    assert np.allclose(got[:, :3, 2:], want, atol=1e-6)
    density = -np.log10(np.maximum(images.reshape(4, -1, 3), 1) / 255.0) @ HE_MATRIX.T
    level = (density - colour.DENSITY_START) / colour.DENSITY_STEP / 255
    assert np.abs(got[:, 3:, 0] - np.clip(level, 0, 1).mean(1)).max() < 1 / 255
    assert np.abs(got[:, 3:, 4] - np.clip(np.median(level, 1), 0, 1)).max() < 2 / 255
    tokens = backend.tokens(images)
    first = backend.vectors(np.ascontiguousarray(images[:1, :4, :4]))
    assert np.allclose(tokens[0, 0, 0], first[0], atol=1e-6)


def test_percentiles() -> None:
    x = torch.from_numpy(np.random.default_rng(4).random((2, 3, 20, 20))).float()
    low, high = Percentiles(400, 0.01)(x)
    want = np.percentile(x.flatten(2).numpy(), [1, 99], axis=2)
    assert np.allclose(low[..., 0, 0].numpy(), want[0], atol=1e-6)
    assert np.allclose(high[..., 0, 0].numpy(), want[1], atol=1e-6)


def test_small_parts() -> None:
    x = torch.from_numpy(np.random.default_rng(5).random((2, 3, 9, 9))).float()
    mean, std = mean_std(x * 1e-3 + 100)
    assert np.allclose(std.numpy(), (x.numpy() * np.float32(1e-3) + np.float32(100)).std((2, 3)), rtol=0.02)
    assert mean.shape == (2, 3)
    assert same_padding(224, 3, 2) == (0, 1)
    assert same_padding(112, 5, 1) == (2, 2)


def test_token_grids_are_resampled_in_place() -> None:
    for n_in, n_out in ((112, 14), (7, 14), (14, 14), (9, 14), (16, 14)):
        w = grids.weights(n_in, n_out)
        assert w.shape == (n_out, n_in)
        assert np.allclose(w.sum(1), 1, atol=1e-6)
    assert np.array_equal(grids.weights(14, 14), np.eye(14, dtype=np.float32))
    want = torch.nn.functional.interpolate(torch.arange(7.0)[None, None, :, None].expand(1, 1, 7, 7), scale_factor=2,
                                           mode="bilinear")[0, 0, :, 0]  # fmt: skip
    assert np.allclose(grids.weights(7, 14) @ np.arange(7.0), want.numpy(), atol=1e-6)
    ramp = (np.arange(8.0) + 0.5) / 8
    half = grids.weights(8, 8, start=0.25, stop=0.75) @ ramp
    assert np.allclose(half, 0.25 + (np.arange(8) + 0.5) / 16, atol=1e-6)
    tokens = np.random.default_rng(6).random((2, 8, 8, 3)).astype(np.float32)
    assert grids.regrid(tokens, (8, 8)) is tokens
    assert np.allclose(grids.regrid(tokens, (4, 4)), tokens.reshape(2, 4, 2, 4, 2, 3).mean((2, 4)), atol=1e-6)
    assert np.allclose(grids.regrid(tokens, (4, 4), part=0.5), tokens[:, 2:6, 2:6], atol=1e-6)


def test_windows_of_another_side() -> None:
    images = np.random.default_rng(7).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    assert resize(images, 8) is images
    mean = images.reshape(2, 4, 2, 4, 2, 3).astype(float).mean((2, 4))
    assert np.abs(resize(images, 4) - mean).max() <= 0.5
    assert resize(images, 6).shape == (2, 6, 6, 3)
