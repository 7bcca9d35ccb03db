"""Transforms from landmarks, against OpenCV and scikit-image's definition, planted truth and real pairs."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import stainseq as ss
from stainseq.core import registration
from stainseq.errors import InputError


def truth(kind: str, rng: np.random.Generator) -> np.ndarray:
    angle, scale = rng.uniform(0, 2 * np.pi), rng.uniform(0.1, 2)
    matrix = np.eye(3)
    matrix[:2, :2] = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix[:2, 2] = rng.uniform(-5000, 5000, 2)
    if kind != "similarity":
        matrix[:2, :2] += rng.uniform(-0.05, 0.05, (2, 2))
    if kind == "projective":
        matrix[2, :2] = rng.uniform(-2e-6, 2e-6, 2)
    return matrix


@pytest.mark.parametrize("kind", registration.MINIMUM)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), extra=st.integers(0, 12))
def test_planted_transforms_come_back(kind: str, seed: int, extra: int) -> None:
    rng = np.random.default_rng(seed)
    n = registration.MINIMUM[kind] + extra
    # Corners first, so that no draw is close to one line.
    corners = np.array([[0, 0], [50_000, 40_000], [50_000, 0], [0, 40_000]], dtype=float)
    source = np.vstack([corners, rng.uniform(0, 40_000, (extra, 2))])[:n]
    matrix = truth(kind, rng)
    found = registration.register(source, registration.apply(matrix, source), kind=kind)
    everywhere = rng.uniform(0, 40_000, (50, 2))
    np.testing.assert_allclose(
        registration.apply(found.matrix, everywhere), registration.apply(matrix, everywhere), atol=0.01
    )
    assert found.residuals.max() < 0.01


def test_agrees_with_opencv_where_there_is_no_noise() -> None:
    rng = np.random.default_rng(0)
    source = rng.uniform(0, 50_000, (20, 2))
    corners = np.array([[0, 0], [50_000, 50_000]], dtype=float)
    for kind, theirs in (
        ("similarity", lambda a, b: np.vstack([cv2.estimateAffinePartial2D(a, b)[0], [0, 0, 1]])),
        ("affine", lambda a, b: np.vstack([cv2.estimateAffine2D(a, b)[0], [0, 0, 1]])),
        ("projective", lambda a, b: cv2.findHomography(a, b)[0]),
    ):
        target = registration.apply(truth(kind, rng), source)
        ours = registration.register(source, target, kind=kind).matrix
        difference = registration.apply(ours, corners) - registration.apply(theirs(source, target), corners)
        assert np.abs(difference).max() < 0.01


def test_least_squares_is_least() -> None:
    rng = np.random.default_rng(1)
    source = rng.uniform(0, 1000, (12, 2))
    target = registration.apply(truth("similarity", rng), source) + rng.normal(0, 5, (12, 2))
    for kind in registration.MINIMUM:
        found = registration.register(source, target, kind=kind)
        best = (found.residuals**2).sum()
        for _ in range(200):
            near = found.matrix + rng.normal(0, 1, (3, 3)) * np.array([[1e-4, 1e-4, 0.1], [1e-4, 1e-4, 0.1], [0, 0, 0]])
            if kind == "similarity":
                a, b = (near[0, 0] + near[1, 1]) / 2, (near[1, 0] - near[0, 1]) / 2
                near[:2, :2] = [[a, -b], [b, a]]
            assert ((registration.apply(near, source) - target) ** 2).sum() >= best * (1 - 1e-9)


def test_left_out_errors_are_those_of_fits_without_the_landmark() -> None:
    rng = np.random.default_rng(2)
    source = rng.uniform(0, 1000, (8, 2))
    target = registration.apply(truth("affine", rng), source) + rng.normal(0, 3, (8, 2))
    found = registration.register(source, target, kind="affine")
    for i in range(8):
        keep = np.arange(8) != i
        design = np.column_stack([source[keep], np.ones(7)])
        coefficients = np.linalg.lstsq(design, target[keep], rcond=None)[0]
        expected = np.linalg.norm(np.append(source[i], 1) @ coefficients - target[i])
        assert found.left_out[i] == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("kind", registration.MINIMUM)
def test_consensus_leaves_wrong_landmarks_out_and_is_the_same_every_time(kind: str) -> None:
    rng = np.random.default_rng(3)
    source = rng.uniform(0, 10_000, (25, 2))
    matrix = truth(kind, rng)
    target = registration.apply(matrix, source) + rng.normal(0, 0.3, (25, 2))
    wrong = [3, 11, 17, 20]
    target[wrong] += rng.uniform(200, 900, (4, 2))
    found = registration.register(source, target, kind=kind, consensus=5.0)
    assert np.flatnonzero(~found.inliers).tolist() == wrong
    assert found.left_out[wrong].min() > 100
    again = registration.register(source, target, kind=kind, consensus=5.0)
    np.testing.assert_array_equal(found.matrix, again.matrix)


def test_mirror_images_are_found_and_two_points_never_mirror() -> None:
    rng = np.random.default_rng(4)
    source = rng.uniform(0, 1000, (6, 2))
    flipped = source * [1, -1] * 0.5 + [10, 900]
    found = registration.register(source, flipped, kind="similarity")
    assert np.linalg.det(found.matrix[:2, :2]) == pytest.approx(-0.25)
    assert found.residuals.max() < 1e-6
    assert np.linalg.det(registration.register(source[:2], flipped[:2], kind="similarity").matrix) > 0


def test_the_worked_example_of_xenium_explorer() -> None:
    """10x Genomics' knowledge base, article 35386990499853: H&E pixels to morphology pixels."""
    matrix = np.array(
        [
            [0.011071028838929093, 1.2895790134339569, 807.9788953065927],
            [-1.2895790134339569, 0.011071028838929093, 73097.655174759],
            [0, 0, 1],
        ]
    )
    np.testing.assert_allclose(registration.apply(matrix, [[0, 0]]), [[807.97889, 73097.65517]], atol=1e-5)
    source = np.array([[0, 0], [40_000, 0], [0, 30_000], [40_000, 30_000]], dtype=float)
    found = registration.register(source, registration.apply(matrix, source), kind="similarity")
    assert np.sqrt(np.linalg.det(found.matrix[:2, :2])) * 0.2125 == pytest.approx(0.27405, abs=1e-5)


def test_the_nearest_affine_and_how_far_it_is_off() -> None:
    matrix = np.array([[1.0, 0.02, 5], [-0.02, 1.0, 7], [1e-6, -2e-6, 1.0]])
    near, off = registration.nearest_affine(matrix, (20_000, 10_000))
    corners = np.array([[0, 0], [20_000, 0], [0, 10_000], [20_000, 10_000]], dtype=float)
    apart = np.linalg.norm(registration.apply(near, corners) - registration.apply(matrix, corners), axis=1)
    assert 0 < apart.max() <= off
    with pytest.raises(InputError, match="folds"):
        registration.nearest_affine(np.array([[1, 0, 0], [0, 1, 0], [-1e-3, 0, 1.0]]), (20_000, 10_000))


@pytest.mark.parametrize(
    ("source", "target", "kind", "said"),
    [
        (np.zeros((3, 2)), np.zeros((4, 2)), "affine", "3 landmarks on one side and 4"),
        (np.eye(2), np.eye(2), "affine", "2 landmarks where an affine transform needs 3"),
        (np.eye(3)[:, :2], np.eye(3)[:, :2], "projective", "needs 4"),
        (np.full((4, 2), np.nan), np.ones((4, 2)), "affine", "not a number"),
        (np.arange(8.0).reshape(4, 2), np.arange(8.0).reshape(4, 2), "affine", "one line"),
        (np.ones((4, 2)), np.arange(8.0).reshape(4, 2), "similarity", "coincide"),
        (np.eye(3)[:, :2], np.eye(3)[:, :2], "rigid", "no kind"),
    ],
)
def test_landmarks_that_cannot_be(source: np.ndarray, target: np.ndarray, kind: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        registration.register(source, target, kind=kind)


def test_swapped_rows_leave_no_consensus() -> None:
    rng = np.random.default_rng(5)
    source = rng.uniform(0, 10_000, (8, 2))
    target = registration.apply(truth("similarity", rng), source)[[1, 0, 3, 2, 5, 4, 7, 6]]
    with pytest.raises(InputError, match="agree within"):
        registration.register(source, target, kind="similarity", consensus=5.0)


@pytest.mark.parametrize(
    ("file", "n", "kind", "left_out"),
    [
        # Errors at hand-placed landmarks of neighbouring sections, in units of the target; regressions of ours, not
        # published figures.
        ("merfish_S2R2_to_S2R3_13pairs.csv", 13, "similarity", 256.9),
        ("merfish_S2R2_to_S2R3_13pairs.csv", 13, "affine", 240.9),
        ("merfish_S2R3_to_visium_hires_12pairs.csv", 12, "similarity", 358.8),
        ("merfish_S2R3_to_visium_hires_12pairs.csv", 12, "affine", 385.9),
        ("merfish_S2R3_to_visium_hires_12pairs.csv", 12, "projective", 306.6),
        ("xenium_breast_rep1_rep2_3pairs.csv", 3, "similarity", 69.0),
    ],
)
def test_real_landmarks(data_dir, file: str, n: int, kind: str, left_out: float) -> None:
    path = data_dir / "registration" / file
    he, goal = (ss.io.read_keypoints(path, side=side) for side in ("alignment", "fixed"))
    assert len(he.xy) == n
    found = registration.register(he.xy, goal.xy, kind=kind)
    assert np.sqrt((found.left_out**2).mean()) == pytest.approx(left_out, abs=0.1)
    assert found.left_out.mean() > found.residuals.mean()
