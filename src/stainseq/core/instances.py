"""Scores of instance maps: Dice, Jaccard, PQ, AJI, detection, over all instances or class by class.

Everything is read off one table, of how many pixels each pair of a true and a predicted instance shares, built in one
compiled pass over both maps.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numba
import numpy as np

EPSILON = 1e-6
"""In the denominators of PQ, as Kirillov et al.'s successors in pathology (HoVer-Net, PanNuke, CellViT) have it."""

MATCH_IOU = 0.5
"""A pair matches above (not at) this overlap, where no instance can have two partners."""


@dataclass(frozen=True, eq=False)
class Overlap:
    """Which instances of two maps share how many pixels.

    Parameters
    ----------
    truth, prediction
        int64 ids of the instances, ascending; 0 is background and no instance.
    truth_px, prediction_px
        int64 areas.
    pairs
        int64 [k, 2] positions in `truth` and `prediction` of the pairs that share pixels, in ascending order.
    shared_px
        int64 [k].
    truth_xy, prediction_xy
        float64 [n, 2] centroids (x, y).
    """

    truth: np.ndarray
    prediction: np.ndarray
    truth_px: np.ndarray
    prediction_px: np.ndarray
    pairs: np.ndarray
    shared_px: np.ndarray
    truth_xy: np.ndarray
    prediction_xy: np.ndarray

    @cached_property
    def iou(self) -> np.ndarray:
        """float64 [k], intersection over union of each pair."""
        i, j = self.pairs.T
        return self.shared_px / (self.truth_px[i] + self.prediction_px[j] - self.shared_px)

    def of_class(self, truth: np.ndarray, prediction: np.ndarray) -> Overlap:
        """The table of some instances alone; masks over `truth` and `prediction`."""
        both = truth[self.pairs[:, 0]] & prediction[self.pairs[:, 1]]
        position = np.cumsum(truth) - 1, np.cumsum(prediction) - 1
        pairs = np.stack([p[side] for p, side in zip(position, self.pairs[both].T, strict=True)], axis=1)
        return Overlap(
            self.truth[truth],
            self.prediction[prediction],
            self.truth_px[truth],
            self.prediction_px[prediction],
            pairs.reshape(-1, 2),
            self.shared_px[both],
            self.truth_xy[truth],
            self.prediction_xy[prediction],
        )


def overlap(truth: np.ndarray, prediction: np.ndarray) -> Overlap:
    """Count the pixels that instances share.

    Parameters
    ----------
    truth, prediction
        Integer [height, width] instance maps, 0 background; ids of any size, with gaps.

    Raises
    ------
    ValueError
        The maps differ in shape.
    """
    if truth.shape != prediction.shape or truth.ndim != 2:
        raise ValueError(f"instance maps of {truth.shape} and {prediction.shape}")
    t, p, shared = _scan(_integers(truth), _integers(prediction))
    t_order, p_order = np.argsort(t[:, 0]), np.argsort(p[:, 0])  # ascending ids, whatever the order of appearance
    t, p = t[t_order], p[p_order]
    i, j = np.argsort(t_order)[shared[:, 0] >> 31], np.argsort(p_order)[shared[:, 0] & 0x7FFFFFFF]
    order = np.argsort(i * (len(p) + 1) + j)
    return Overlap(
        t[:, 0],
        p[:, 0],
        t[:, 1],
        p[:, 1],
        np.stack([i[order], j[order]], axis=1),
        shared[order, 1],
        t[:, 2:] / t[:, 1:2],
        p[:, 2:] / p[:, 1:2],
    )


def _integers(labels: np.ndarray) -> np.ndarray:
    kept = labels.dtype in (np.int32, np.uint32, np.int64)  # few types to compile for; no copy of the usual ones
    return np.ascontiguousarray(labels, dtype=None if kept else np.int64)


# Arrays handed back by a compiled function cost more than a look-up: the hot path only reads, growing is a call apart.
@numba.njit(cache=True, nogil=True, inline="always")
def _slot(keys, key):  # type: ignore[no-untyped-def]
    """Where a key is in an open-addressing table, or the free slot where it belongs; 0 and 1 mark free slots."""
    # Upper bits are folded in: pairs with one large instance differ in these alone, and would queue for one slot.
    mixed = (key ^ (key >> 15)) * 0x9E3779B1
    slot = (mixed ^ (mixed >> 32)) & (len(keys) - 1)
    while keys[slot, 1] != 0 and keys[slot, 0] != key:
        slot = (slot + 1) & (len(keys) - 1)
    return slot


@numba.njit(cache=True, nogil=True)
def _grown(keys):  # type: ignore[no-untyped-def]
    more = np.zeros((4 * len(keys), 2), np.int64)
    for k in range(len(keys)):
        if keys[k, 1] != 0:
            more[_slot(more, keys[k, 0])] = keys[k]
    return more


@numba.njit(cache=True, nogil=True)
def _scan(truth, prediction):  # type: ignore[no-untyped-def]
    """Ids in order of appearance with (pixels, sum of x, sum of y), and pairs of them with their pixels; run by run.

    Tables hold a key and 1 + its position; sums hold the id first.
    """
    t_keys, p_keys, b_keys = np.zeros((512, 2), np.int64), np.zeros((512, 2), np.int64), np.zeros((1024, 2), np.int64)
    t_sum, p_sum, shared = np.zeros((256, 4), np.int64), np.zeros((256, 4), np.int64), np.zeros((512, 2), np.int64)
    n_t = n_p = n_b = 0
    i = j = 0
    last_t, last_p = np.int64(0), np.int64(0)
    height, width = truth.shape
    for y in range(height):
        t_row, p_row = truth[y], prediction[y]
        x = 0
        while x < width:
            t, p = t_row[x], p_row[x]
            stop = x + 1
            while stop < width and t_row[stop] == t and p_row[stop] == p:
                stop += 1
            run = stop - x
            across, down = (2 * x + run - 1) * run // 2, run * y
            if t != 0:
                if t != last_t:
                    last_t = np.int64(t)
                    slot = _slot(t_keys, last_t)
                    if t_keys[slot, 1] == 0:
                        if n_t == len(t_sum):
                            t_sum = np.concatenate((t_sum, np.zeros_like(t_sum)))
                        if 2 * n_t >= len(t_keys):
                            t_keys = _grown(t_keys)
                            slot = _slot(t_keys, last_t)
                        t_sum[n_t, 0] = last_t
                        n_t += 1
                        t_keys[slot, 0], t_keys[slot, 1] = last_t, n_t
                    i = t_keys[slot, 1] - 1
                t_sum[i, 1] += run
                t_sum[i, 2] += across
                t_sum[i, 3] += down
            if p != 0:
                if p != last_p:
                    last_p = np.int64(p)
                    slot = _slot(p_keys, last_p)
                    if p_keys[slot, 1] == 0:
                        if n_p == len(p_sum):
                            p_sum = np.concatenate((p_sum, np.zeros_like(p_sum)))
                        if 2 * n_p >= len(p_keys):
                            p_keys = _grown(p_keys)
                            slot = _slot(p_keys, last_p)
                        p_sum[n_p, 0] = last_p
                        n_p += 1
                        p_keys[slot, 0], p_keys[slot, 1] = last_p, n_p
                    j = p_keys[slot, 1] - 1
                p_sum[j, 1] += run
                p_sum[j, 2] += across
                p_sum[j, 3] += down
                if t != 0:
                    key = i << 31 | j
                    slot = _slot(b_keys, key)
                    if b_keys[slot, 1] == 0:
                        if n_b == len(shared):
                            shared = np.concatenate((shared, np.zeros_like(shared)))
                        if 2 * n_b >= len(b_keys):
                            b_keys = _grown(b_keys)
                            slot = _slot(b_keys, key)
                        shared[n_b, 0] = key
                        n_b += 1
                        b_keys[slot, 0], b_keys[slot, 1] = key, n_b
                    shared[b_keys[slot, 1] - 1, 1] += run
            x = stop
    return t_sum[:n_t].copy(), p_sum[:n_p].copy(), shared[:n_b].copy()


def majority(labels: np.ndarray, classes: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Class of each instance: the one most of its pixels have, of equals the lowest.

    Parameters
    ----------
    labels
        Integer [height, width] instance map.
    classes
        Integer [height, width], 0 background.
    ids
        Ascending ids of the instances, such as `Overlap.truth`.

    Returns
    -------
    int64 [n]; 0 where an instance has no pixel of any class.
    """
    out = np.zeros(len(ids), dtype=np.int64)
    table = overlap(labels, classes)
    if len(table.pairs):
        i, j = table.pairs.T
        order = np.lexsort((j, -table.shared_px, i))
        first = order[np.r_[True, i[order][1:] != i[order][:-1]]]
        out[np.searchsorted(ids, table.truth[i[first]])] = table.prediction[j[first]]
    return out


def pixel_scores(truth: np.ndarray, prediction: np.ndarray) -> dict[str, float]:
    """Dice and Jaccard of foreground against background.

    Parameters
    ----------
    truth, prediction
        [height, width]; not 0 is foreground.

    Returns
    -------
    dict
        "dice" 2 TP / (2 TP + FP + FN) and "jaccard" TP / (TP + FP + FN); both 0 where neither map has foreground, as
        torchmetrics and CellViT have it.
    """
    a, b = truth != 0, prediction != 0
    both, either = int((a & b).sum()), int((a | b).sum())
    return {"dice": 2 * both / (both + either) if either else 0.0, "jaccard": both / either if either else 0.0}


def panoptic_quality(table: Overlap, *, match_iou: float = MATCH_IOU) -> dict[str, float]:
    """Detection quality, segmentation quality and their product.

    Parameters
    ----------
    table
        From `overlap`.
    match_iou
        Pairs match above it. Below 0.5 an instance could have several partners: then pairs are assigned one to one,
        maximising the summed overlap.

    Returns
    -------
    dict
        "dq", "sq", "pq" (NaN where there is no true instance) and the counts "tp", "fp", "fn".

    Notes
    -----
    Kirillov et al., CVPR 2019, with the 1e-6 of HoVer-Net (Graham et al., Medical Image Analysis 2019):
    DQ = TP / (TP + FP/2 + FN/2 + 1e-6), SQ = sum of IoU / (TP + 1e-6).
    """
    matched = table.iou[_matches(table, match_iou)]
    tp = len(matched)
    fp, fn = len(table.prediction) - tp, len(table.truth) - tp
    if len(table.truth) == 0:
        return {"dq": np.nan, "sq": np.nan, "pq": np.nan, "tp": tp, "fp": fp, "fn": fn}
    dq = tp / (tp + 0.5 * fp + 0.5 * fn + EPSILON)
    sq = float(matched.sum()) / (tp + EPSILON)
    return {"dq": dq, "sq": sq, "pq": dq * sq, "tp": tp, "fp": fp, "fn": fn}


def aggregated_jaccard(table: Overlap) -> dict[str, float]:
    """Aggregated Jaccard index and its one-to-one variant.

    Parameters
    ----------
    table
        From `overlap`.

    Returns
    -------
    dict
        "aji": each true instance with its best overlapping predicted one, which may serve several (Kumar et al., IEEE
        TMI 2017, as HoVer-Net computes it); "aji_plus": pairs assigned one to one, maximising the summed overlap
        (Graham et al. 2019). What has no partner counts in the denominator. NaN where both maps are empty.
    """
    areas = int(table.truth_px.sum() + table.prediction_px.sum())
    if areas == 0:
        return {"aji": np.nan, "aji_plus": np.nan}
    i, j = table.pairs.T
    # Best partner: the highest overlap, of equals the first.
    order = np.lexsort((np.arange(len(i)), -table.iou, i))
    best = order[np.r_[True, i[order][1:] != i[order][:-1]]] if len(order) else order
    union = table.truth_px[i[best]] + table.prediction_px[j[best]] - table.shared_px[best]
    left_truth = np.setdiff1d(np.arange(len(table.truth)), i[best])
    left_prediction = np.setdiff1d(np.arange(len(table.prediction)), j[best])
    lost = table.truth_px[left_truth].sum() + table.prediction_px[left_prediction].sum()
    once = _assigned(table)
    shared = int(table.shared_px[once].sum())
    return {
        "aji": float(table.shared_px[best].sum() / (union.sum() + lost)),
        "aji_plus": shared / (areas - shared),
    }


def ensemble_dice(table: Overlap) -> float:
    """Dice over all overlapping pairs, "DICE2" of HoVer-Net and of the MICCAI 2017 nuclei challenge; NaN if both are
    empty, 0 if nothing overlaps."""
    i, j = table.pairs.T
    total = int(table.truth_px[i].sum() + table.prediction_px[j].sum())
    if total == 0:
        return 0.0 if len(table.truth) + len(table.prediction) else float("nan")
    return 2 * int(table.shared_px.sum()) / total


def pair_centroids(
    truth_xy: np.ndarray, prediction_xy: np.ndarray, *, radius_px: float, compat: bool = False
) -> np.ndarray:
    """Detections: centroids paired one to one within a radius.

    Parameters
    ----------
    truth_xy, prediction_xy
        float [n, 2] and [m, 2].
    radius_px
        Largest distance of a pair; 12 px at 0.25 um/px and 6 px at 0.5 um/px in the field (3 um).
    compat
        HoVer-Net's and CellViT's way: every centroid is assigned first, with the least distance summed over near and
        far, and pairs beyond the radius are dropped then; one spurious nucleus far away can so undo a true pair. The
        default finds as many pairs within the radius as there can be, of these the ones with the least distance.

    Returns
    -------
    int64 [k, 2] positions in the two arrays, ascending.
    """
    from scipy.optimize import linear_sum_assignment
    from scipy.spatial import KDTree
    from scipy.spatial.distance import cdist

    if len(truth_xy) == 0 or len(prediction_xy) == 0:
        return np.zeros((0, 2), dtype=np.int64)
    if compat:
        distance = cdist(truth_xy, prediction_xy)
        i, j = linear_sum_assignment(distance)
        near = distance[i, j] <= radius_px
        return np.stack([i[near], j[near]], axis=1).astype(np.int64)
    near = KDTree(truth_xy).sparse_distance_matrix(KDTree(prediction_xy), radius_px, output_type="ndarray")
    order = np.lexsort((near["j"], near["i"]))
    i, j, distance = near["i"][order], near["j"][order], near["v"][order]
    # No sum of distances outweighs one more pair.
    once = _one_to_one(i, j, radius_px * (min(len(truth_xy), len(prediction_xy)) + 1) - distance)
    return np.stack([i[once], j[once]], axis=1).astype(np.int64)


def f1(tp: float, fp: float, fn: float) -> dict[str, float]:
    """F1, precision and recall; NaN where there is nothing to find or nothing found."""

    def ratio(a: float, b: float) -> float:
        return a / b if b else float("nan")

    return {"f1": ratio(2 * tp, 2 * tp + fp + fn), "precision": ratio(tp, tp + fp), "recall": ratio(tp, tp + fn)}


def type_counts(pairs: np.ndarray, truth_class: np.ndarray, prediction_class: np.ndarray, kind: int) -> dict[str, int]:
    """What `type_f1` of a class is made from; counts of several images add up.

    Parameters
    ----------
    pairs
        int [k, 2] from `pair_centroids`.
    truth_class, prediction_class
        Class of every instance.
    kind
        The class that is counted.

    Returns
    -------
    dict
        "tp", "fp", "fn" among the pairs; "fp_d", "fn_d": unpaired instances of the class.
    """
    a, b = truth_class[pairs[:, 0]] == kind, prediction_class[pairs[:, 1]] == kind
    tp, fp, fn = int((a & b).sum()), int((b & ~a).sum()), int((a & ~b).sum())
    fp_d, fn_d = int((prediction_class == kind).sum()) - tp - fp, int((truth_class == kind).sum()) - tp - fn
    return {"tp": tp, "fp": fp, "fn": fn, "fp_d": fp_d, "fn_d": fn_d}


def type_f1(counts: dict[str, int]) -> dict[str, float]:
    """Detection and classification in one, as HoVer-Net and CellViT score a class.

    Parameters
    ----------
    counts
        From `type_counts`.

    Returns
    -------
    dict
        "f1" = 2 TP / (2 TP + 2 FP + 2 FN + FP_d + FN_d), "precision" and "recall" with the FP or the FN alone; NaN
        where the class does not occur. (The published formula adds TN to TP: 0 over pairs with the class on a side.)
    """
    tp, fp, fn = 2 * counts["tp"], 2 * counts["fp"] + counts["fp_d"], 2 * counts["fn"] + counts["fn_d"]

    def ratio(under: int) -> float:
        return tp / under if under else float("nan")

    return {"f1": ratio(tp + fp + fn), "precision": ratio(tp + fp), "recall": ratio(tp + fn)}


def _matches(table: Overlap, match_iou: float) -> np.ndarray:
    """Positions of the matching pairs."""
    above = table.iou > match_iou
    if match_iou >= 0.5:
        return np.flatnonzero(above)
    once = _assigned(table)
    return once[above[once]]


def _assigned(table: Overlap) -> np.ndarray:
    """Pairs assigned one to one, maximising the summed overlap."""
    return _one_to_one(table.pairs[:, 0], table.pairs[:, 1], table.iou)


def _one_to_one(i: np.ndarray, j: np.ndarray, gain: np.ndarray) -> np.ndarray:
    """Which of the pairs (i, j) to keep so that their gain is highest; solved group by group of linked pairs."""
    from scipy.optimize import linear_sum_assignment
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    if len(i) == 0:
        return np.zeros(0, dtype=np.int64)
    n, m = int(i.max()) + 1, int(j.max()) + 1
    graph = coo_array((np.ones(len(i)), (i, n + j)), shape=(n + m, n + m))
    group = connected_components(graph, directed=False)[1][i]
    order = np.argsort(group, kind="stable")
    chosen = []
    for members in np.split(order, np.flatnonzero(np.diff(group[order])) + 1):
        if len(members) == 1:
            chosen.append(members)
            continue
        rows, r = np.unique(i[members], return_inverse=True)
        columns, c = np.unique(j[members], return_inverse=True)
        gains = np.zeros((len(rows), len(columns)))
        where = np.full(gains.shape, -1)
        gains[r, c], where[r, c] = gain[members], members
        best = where[linear_sum_assignment(-gains)]
        chosen.append(best[best >= 0])
    return np.sort(np.concatenate(chosen))
