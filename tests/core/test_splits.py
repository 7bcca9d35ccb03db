"""Splits: balanced, order-free, buffered, and leaks named."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from scipy.spatial.distance import cdist

from stainseq.core import splits
from stainseq.errors import InputError


def test_row_hash_sees_content_only():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((50, 7)).astype(np.float32)
    h = splits.row_hash(x)
    assert len(np.unique(h)) == 50
    order = rng.permutation(50)
    np.testing.assert_array_equal(splits.row_hash(x[order]), h[order])
    assert splits.row_hash(np.array([[0.0, 1]])) == splits.row_hash(np.array([[-0.0, 1]]))
    sp = sparse.random(30, 40, 0.3, format="csr", random_state=0)
    np.testing.assert_array_equal(splits.row_hash(sp), splits.row_hash(sp.toarray()))
    names = np.array(["a", "bb", "ccc"])
    np.testing.assert_array_equal(splits.row_hash(names)[:2], splits.row_hash(names[:2]))
    assert (splits.row_hash(names, seed=1) != splits.row_hash(names)).all()


@given(st.lists(st.integers(0, 12), min_size=2, max_size=80), st.integers(2, 5), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_group_folds_keep_groups_whole_and_ignore_row_order(groups, n_folds, seed):
    groups = np.array(groups)
    labels = splits.group_folds(groups, n_folds=n_folds, seed=seed)
    assert labels.max() + 1 == min(n_folds, len(np.unique(groups)))
    for g in np.unique(groups):
        assert len(np.unique(labels[groups == g])) == 1
    order = np.random.default_rng(seed).permutation(len(groups))
    np.testing.assert_array_equal(splits.group_folds(groups[order], n_folds=n_folds, seed=seed), labels[order])


def test_folds_are_balanced_by_rows():
    groups = np.repeat(np.arange(9), [50, 30, 30, 20, 20, 10, 10, 5, 5])
    sizes = np.bincount(splits.group_folds(groups, n_folds=3))
    assert sizes.sum() == 180
    assert sizes.max() - sizes.min() <= 10


def test_by_group_leaves_one_out_and_needs_two():
    groups = np.array(["p1", "p1", "p2", "p3"])
    folds = splits.by_group(groups)
    assert sorted(groups[f.test][0] for f in folds) == ["p1", "p2", "p3"]
    for f in folds:
        assert not set(groups[f.train]) & set(groups[f.test])
        assert len(f.train) + len(f.test) == 4
    with pytest.raises(InputError, match="split by block"):
        splits.by_group(np.zeros(4))


@given(st.integers(20, 120), st.integers(0, 2**31), st.floats(0, 150))
@settings(max_examples=30, deadline=None)
def test_blocks_cover_all_rows_and_buffers_hold(n, seed, buffer_um):
    rng = np.random.default_rng(seed)
    xy, slides = rng.uniform(0, 2000, (n, 2)), rng.integers(0, 2, n)
    try:
        folds = splits.by_block(xy, slides, block_um=500, buffer_um=buffer_um, n_folds=3, seed=seed)
    except InputError:
        return
    assert sorted(np.concatenate([f.test for f in folds])) == list(range(n))
    far = cdist(xy, xy)
    far[slides[:, None] != slides[None]] = np.inf
    for f in folds:
        assert sorted(np.concatenate(f)) == list(range(n))
        if len(f.train):
            assert far[np.ix_(f.train, f.test)].min() >= buffer_um
        if len(f.buffer):
            assert (far[np.ix_(f.buffer, f.test)].min(axis=1) < buffer_um).all()


def test_blocks_ignore_row_order_and_do_not_join_slides():
    rng = np.random.default_rng(1)
    xy, slides = rng.uniform(0, 3000, (200, 2)), rng.integers(0, 3, 200)
    order = rng.permutation(200)
    a = splits.by_block(xy, slides, block_um=700, buffer_um=100, n_folds=4)
    b = splits.by_block(xy[order], slides[order], block_um=700, buffer_um=100, n_folds=4)
    for f, g in zip(a, b, strict=True):
        assert set(f.test) == set(order[g.test])
        assert set(f.train) == set(order[g.train])
    blocks = splits.block_labels(xy, block_um=700, slides=slides)
    for b_ in np.unique(blocks):
        assert len(np.unique(slides[blocks == b_])) == 1
        assert np.ptp(xy[blocks == b_], axis=0).max() <= 700


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"block_um": 1e6, "buffer_um": 0}, "1 block of"),
        ({"block_um": 500, "buffer_um": 1e5}, "no training rows"),
        ({"block_um": 0, "buffer_um": 0}, "block_um"),
    ],
)
def test_impossible_blocks_are_refused(options, words):
    xy = np.random.default_rng(0).uniform(0, 2000, (100, 2))
    with pytest.raises(InputError, match=words):
        splits.by_block(xy, n_folds=3, **options)


def test_bad_coordinates():
    with pytest.raises(InputError, match="NaN"):
        splits.block_labels(np.array([[0, np.nan]]), block_um=1)
    with pytest.raises(InputError, match="shape"):
        splits.block_labels(np.zeros((3, 3)), block_um=1)


@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_planted_leaks_are_named(kind):
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 9, (60, 40)).astype(float)
    slides = np.repeat(["S1", "S2", "S3"], 20)
    rows[40:60] = rows[0:20]  # a section under another name
    rows[[5, 25]] = 0  # empty rows are alike by chance
    patients = np.repeat(["p1", "p2", "p2"], 20)
    given_rows = sparse.csr_matrix(rows) if kind == "sparse" else rows
    sets = {"train": np.arange(40), "test": np.arange(40, 60)}
    leaks = splits.find_leaks(sets, patients=patients, rows=given_rows, slides=slides)
    assert [x["kind"] for x in leaks] == ["patient", "rows"]
    assert (leaks[0]["a"], leaks[0]["b"], leaks[0]["shared"]) == ("p2", "p2", 1.0)
    assert {leaks[1]["a"], leaks[1]["b"]} == {"S1", "S3"}
    assert leaks[1]["shared"] == pytest.approx(0.95)
    with pytest.raises(InputError, match=r"patient p2 in test and p2 in train.*S3"):
        splits.refuse_leaks(leaks)
    splits.refuse_leaks(splits.find_leaks({"train": np.arange(20), "test": np.arange(20, 40)}, rows=given_rows))
