"""Scores of instance maps against literal formulas and published values."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import linear_sum_assignment

from stainseq.core import instances

maps = arrays(np.int32, (7, 9), elements=st.sampled_from([0, 0, 0, 1, 2, 5, 70_000, 2**31 - 1]))


def literal(truth, prediction):
    """IoU of every pair by masks."""
    t, p = ([i for i in np.unique(m) if i] for m in (truth, prediction))
    iou = np.zeros((len(t), len(p)))
    for i, a in enumerate(t):
        for j, b in enumerate(p):
            iou[i, j] = ((truth == a) & (prediction == b)).sum() / ((truth == a) | (prediction == b)).sum()
    return t, p, iou


@settings(max_examples=80, deadline=None)
@given(maps, maps)
def test_against_masks(truth, prediction):
    table = instances.overlap(truth, prediction)
    t, p, iou = literal(truth, prediction)
    assert table.truth.tolist() == t
    assert table.prediction.tolist() == p
    assert table.truth_px.tolist() == [(truth == i).sum() for i in t]
    dense = np.zeros_like(iou)
    dense[tuple(table.pairs.T)] = table.iou
    assert np.array_equal(dense, iou)
    assert np.all(table.shared_px > 0)
    for ids, image, xy in ((t, truth, table.truth_xy), (p, prediction, table.prediction_xy)):
        want = [[np.nonzero(image == i)[1].mean(), np.nonzero(image == i)[0].mean()] for i in ids]
        assert np.allclose(xy, np.array(want).reshape(-1, 2))

    got = instances.panoptic_quality(table)
    tp, matched = int((iou > 0.5).sum()), iou[iou > 0.5].sum()
    if t:
        dq = tp / (tp + (len(p) - tp) / 2 + (len(t) - tp) / 2 + 1e-6)
        assert got["pq"] == pytest.approx(dq * matched / (tp + 1e-6), abs=1e-12)
    else:
        assert np.isnan(got["pq"])
    assert (got["tp"], got["fp"], got["fn"]) == (tp, len(p) - tp, len(t) - tp)
    check_aji(table, truth, prediction, t, p, iou)


def check_aji(table, truth, prediction, t, p, iou):
    got = instances.aggregated_jaccard(table)
    if not t and not p:
        assert np.isnan(got["aji"])
        assert np.isnan(got["aji_plus"])
        return
    shared = union = 0
    used = set()
    for i, a in enumerate(t):
        if len(p) and iou[i].max() > 0:
            b = p[int(iou[i].argmax())]
            used.add(b)
            shared += ((truth == a) & (prediction == b)).sum()
            union += ((truth == a) | (prediction == b)).sum()
        else:
            union += (truth == a).sum()
    union += sum((prediction == b).sum() for b in p if b not in used)
    assert got["aji"] == pytest.approx(shared / union)
    rows, columns = linear_sum_assignment(-iou)
    # Several assignments may share the highest summed overlap; then only the sum is defined.
    once = instances._assigned(table)
    assert table.iou[once].sum() == pytest.approx(iou[rows, columns].sum())
    assert len(np.unique(table.pairs[once, 0])) == len(np.unique(table.pairs[once, 1])) == len(once)


def test_published_example(data_dir):
    """The HoVer-Net authors' example, all eight values to four decimals."""
    cv2, pd = pytest.importorskip("cv2"), pytest.importorskip("pandas")
    folder = data_dir / "seg_metrics_reference"
    if not folder.is_dir():
        pytest.skip("the published example of instance scores is not there")

    def load(name):
        return cv2.imread(str(folder / name)).astype(np.int64) @ [1, 256, 65536]

    for row in pd.read_csv(folder / "published_values.csv").itertuples():
        table = instances.overlap(load("true.png"), load(f"{row.prediction}.png"))
        jaccard = instances.aggregated_jaccard(table)
        got = (
            instances.ensemble_dice(table),
            jaccard["aji"],
            jaccard["aji_plus"],
            instances.panoptic_quality(table)["pq"],
        )
        assert [round(v, 4) for v in got] == [row.DICE2, row.AJI, row.AJI_plus, row.PQ]


def test_nothing_to_see():
    """No background at all, and nothing but background: values, not errors."""
    full, none = np.ones((4, 4), dtype=np.uint32), np.zeros((4, 4), dtype=np.uint32)
    assert instances.panoptic_quality(instances.overlap(full, full))["pq"] == pytest.approx(1, abs=2e-6)
    assert instances.panoptic_quality(instances.overlap(full, none))["pq"] == 0
    assert np.isnan(instances.panoptic_quality(instances.overlap(none, full))["pq"])
    assert instances.pixel_scores(none, none) == {"dice": 0.0, "jaccard": 0.0}
    assert instances.pixel_scores(full, none) == {"dice": 0.0, "jaccard": 0.0}
    assert instances.ensemble_dice(instances.overlap(full, none)) == 0
    with pytest.raises(ValueError, match="instance maps"):
        instances.overlap(full, none[:2])


def test_many_ids():
    """Tables grow: more instances than any first size, ids of all 32 bits."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2**32, (90, 70), dtype=np.uint32)
    prediction = np.roll(truth, 1, axis=0)
    table = instances.overlap(truth, prediction)
    assert np.array_equal(table.truth, np.unique(truth))
    assert len(table.pairs) == truth.size
    assert table.shared_px.sum() == truth.size


def test_partners_of_one_instance_are_spread_over_the_table():
    """A map's nuclei against one large instance or few classes: in one slot they would take quadratic time."""
    free = np.zeros((4096, 2), np.int64)
    slots = {instances._slot(free, np.int64(i) << 31) for i in range(1000)}
    assert len(slots) > 700  # of 1,000 at random 887 are distinct


def test_low_overlap_is_assigned_once():
    truth = np.array([[1, 1, 1, 1, 2, 2, 2, 2]])
    prediction = np.array([[7, 7, 8, 8, 8, 8, 9, 9]])
    table = instances.overlap(truth, prediction)
    assert instances.panoptic_quality(table)["tp"] == 0
    assert instances.panoptic_quality(table, match_iou=0.2)["tp"] == 2


def test_classes_and_detection():
    truth = np.zeros((20, 20), dtype=np.int32)
    truth[1:5, 1:5], truth[10:14, 10:14], truth[1:4, 15:18] = 1, 2, 3
    prediction = np.zeros_like(truth)
    prediction[2:6, 1:5], prediction[10:14, 11:15], prediction[16:19, 2:5] = 4, 5, 6
    table = instances.overlap(truth, prediction)
    pairs = instances.pair_centroids(table.truth_xy, table.prediction_xy, radius_px=3)
    # The field's way gives the second pair away to shorten the sum over the two nuclei that have no partner.
    assert instances.pair_centroids(table.truth_xy, table.prediction_xy, radius_px=3, compat=True).tolist() == [[0, 0]]
    assert pairs.tolist() == [[0, 0], [1, 1]]
    assert instances.f1(2, 1, 1) == {"f1": 2 / 3, "precision": 2 / 3, "recall": 2 / 3}
    kinds, guessed = np.array([1, 1, 2]), np.array([1, 2, 2])
    # Class 1: one pair right, one called 2. Class 2: that pair, and one unpaired nucleus on either side.
    assert instances.type_f1(instances.type_counts(pairs, kinds, guessed, 1))["f1"] == pytest.approx(2 / (2 + 2))
    assert instances.type_f1(instances.type_counts(pairs, kinds, guessed, 2))["f1"] == pytest.approx(0)
    assert instances.type_f1(instances.type_counts(pairs, kinds, guessed, 2))["precision"] == pytest.approx(0 / (2 + 1))
    one = table.of_class(kinds == 1, guessed == 1)
    assert one.truth.tolist() == [1, 2]
    assert one.prediction.tolist() == [4]
    assert one.pairs.tolist() == [[0, 0]]
    assert instances.panoptic_quality(one)["tp"] == 1
    assert np.isnan(instances.type_f1(instances.type_counts(pairs, kinds, guessed, 3))["f1"])
