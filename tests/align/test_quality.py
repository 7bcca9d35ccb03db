"""Pen, folds and blur put on real tissue are found, and real tissue is left alone."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy import sparse

import stainseq as ss
from stainseq import regions
from stainseq.core import quality
from stainseq.errors import InputError

STEP = 12


@pytest.fixture(scope="module")
def tissue() -> np.ndarray:
    found = cv2.imread(str(ss.datasets.her2st("C2") / "C2_HE.jpg"))
    return np.ascontiguousarray(cv2.cvtColor(found, cv2.COLOR_BGR2RGB)[3600:8400, 3600:8400])


def classes(picture: np.ndarray) -> np.ndarray:
    return quality.classify(quality.look(picture, STEP))


def share(found: np.ndarray, name: str, where: np.ndarray) -> float:
    return float((found[where] == quality.CLASSES.index(name)).mean())


def test_clean_tissue_is_good(tissue: np.ndarray) -> None:
    found = classes(tissue)
    kept = found != quality.CLASSES.index("background")
    assert 0.4 < kept.mean() < 0.9
    assert share(found, "good", kept) > 0.98


@pytest.mark.parametrize("ink", [(20, 60, 170), (30, 140, 60), (15, 15, 20)])
def test_pen_of_three_colours(tissue: np.ndarray, ink: tuple[int, int, int]) -> None:
    picture, stroke = tissue.copy(), np.zeros(tissue.shape[:2], np.uint8)
    cv2.line(picture, (300, 900), (4000, 3300), ink, 110)
    cv2.line(stroke, (300, 900), (4000, 3300), 1, 80)
    at = cv2.resize(stroke, (400, 400), interpolation=cv2.INTER_AREA) > 0
    found = classes(picture)
    assert share(found, "pen", at) > 0.97
    far = ~cv2.dilate(at.astype(np.uint8), np.ones((9, 9))).astype(bool)
    assert share(found, "pen", far) < 0.01


def test_blur_and_folds(tissue: np.ndarray) -> None:
    clean, picture = classes(tissue), tissue.copy()
    picture[2600:3500, 2400:3300] = cv2.GaussianBlur(picture[2600:3500, 2400:3300], (0, 0), 10)
    fold = picture[1500:2500, 2500:2800].astype(np.float64) / 255
    picture[1500:2500, 2500:2800] = (255 * fold**3).astype(np.uint8)
    found, at = classes(picture), np.zeros(clean.shape, dtype=bool)
    at[220:288, 204:272] = True
    assert share(found, "blurred", at & (clean == 0)) > 0.9
    at[:] = False
    at[128:206, 210:231] = True
    assert share(found, "fold", at & (clean == 0)) > 0.5
    untouched = np.ones(clean.shape, dtype=bool)
    untouched[120:296, 196:280] = False
    assert (found == clean)[untouched].mean() > 0.98


def test_empty_and_uniform_pictures() -> None:
    white = np.full((240, 240, 3), 245, np.uint8)
    assert (classes(white) == quality.CLASSES.index("background")).all()
    pink = np.full((240, 240, 3), (200, 120, 180), np.uint8)
    assert (classes(pink) != quality.CLASSES.index("background")).all()


def test_blocks_join_to_the_whole(tissue: np.ndarray) -> None:
    whole = quality.look(tissue, STEP)
    halves = [[quality.look(tissue[y : y + 2400, x : x + 2400], STEP) for x in (0, 2400)] for y in (0, 2400)]
    joined = quality.join(halves)
    np.testing.assert_array_equal(joined.colour, whole.colour)
    # The Laplacian sees a pixel beyond a block: the squares along the seam may differ a little.
    assert (quality.classify(joined) == quality.classify(whole)).mean() > 0.999


def test_the_table_of_a_slide(tmp_path: Path) -> None:
    ss.datasets.xenium(tmp_path / "b", n_genes=3, transcripts=False)
    sdata = ss.io.convert(tmp_path / "b", tmp_path / "s.zarr")
    with pytest.raises(InputError, match="is no grid"):
        ss.pp.quality(sdata, region="cells")
    ss.pp.superpixels(sdata, tissue_key="none")
    table = ss.pp.quality(sdata)
    assert list(table.obs_names) == list(regions.get(sdata, "superpixels").ids)
    assert (table.obs["quality"] == "good").mean() > 0.6
    assert not table.obs["quality"].isin(["pen"]).any()


def histosweep(picture: np.ndarray, step: int) -> np.ndarray:
    """The published mask, step by step as described: density of (colour, spread), texture, Otsu of their ratio."""
    from scipy.ndimage import gaussian_filter
    from skimage.color import rgb2gray
    from skimage.feature import graycomatrix
    from skimage.filters import threshold_otsu
    from sklearn.mixture import GaussianMixture

    def unit(v: np.ndarray) -> np.ndarray:
        return (v - v.min()) / (v.max() - v.min())

    h, w = picture.shape[0] // step, picture.shape[1] // step
    blocks = picture.reshape(h, step, w, step, 3).swapaxes(1, 2).astype(np.float32)
    spread, means = blocks.reshape(h, w, -1).std(axis=2), blocks.mean(axis=(2, 3))
    weights = means.reshape(-1, 3).var(axis=0)
    z = means @ weights / weights.sum()
    ratio = unit((unit(spread) + 1) / (unit(z) + 1))
    bins = int(0.00005 * h * w)
    found, x, y = np.histogram2d(z.ravel(), spread.ravel(), bins=bins)
    found = gaussian_filter(found, max(1, int(0.02 * bins)))
    at = [np.clip(np.digitize(v, edges) - 1, 0, bins - 1) for v, edges in ((z, x), (spread, y))]
    rare, keep = found[at[0], at[1]] < 100, np.zeros((h, w), dtype=bool)
    red, green, blue = np.moveaxis(means, -1, 0)
    dropped = ((green > red + 20) & (green > blue + 20)) | (means.std(axis=2) < 10) | (means > 230).all(axis=2)
    looked = np.argwhere(rare & ~dropped)
    texture = []
    i, j = np.indices((64, 64))
    for r, c in looked:
        grey = (rgb2gray(blocks[r, c] / 255) * 63).astype(np.uint8)
        p = graycomatrix(grey, [1], [0], levels=64, symmetric=True, normed=True)[..., 0, 0]
        texture.append((np.sqrt((p**2).sum()), (p / (1 + (i - j) ** 2)).sum(), -(p[p > 0] * np.log2(p[p > 0])).sum()))
    if len(looked) >= 4:
        scaled = np.apply_along_axis(unit, 0, np.array(texture))
        cluster = GaussianMixture(4, random_state=45).fit_predict(scaled)
        value = scaled[:, 0] + scaled[:, 1] - scaled[:, 2]
        order = np.argsort([value[cluster == k].mean() for k in range(4)])
        keep[tuple(looked[np.isin(cluster, order[:2])].T)] = True
    rest = ratio[~rare]
    keep |= ~rare & (ratio >= threshold_otsu(rest[rest < np.percentile(rest, 90)]))
    count, labels, stats, _ = cv2.connectedComponentsWithStats(keep.astype(np.uint8), connectivity=8)
    small = np.flatnonzero(stats[:count, cv2.CC_STAT_AREA] < 10)
    return keep & ~np.isin(labels, small)


def test_agrees_with_histosweep_where_that_works(tissue: np.ndarray) -> None:
    """Clean tissue. The overlap is 0.95 on the whole section C2 and 0.95 on a crop of CMU-1.

    Here it is 0.87: with little glass in the picture, Otsu's threshold of the published mask falls amid the tissue.
    """
    ours, theirs = classes(tissue) == 0, histosweep(tissue, STEP)
    assert (ours & theirs).sum() / (ours | theirs).sum() > 0.85
    assert (ours & theirs).sum() / theirs.sum() > 0.95


def test_small_slides_work_where_histosweep_has_no_bins(tissue: np.ndarray) -> None:
    small = np.ascontiguousarray(tissue[:1200, 1200:2400])  # 10,000 squares: int(0.00005 * N) is 0
    with pytest.raises(ValueError, match="bins"):
        histosweep(small, STEP)
    whole, part = classes(tissue)[:100, 100:200], classes(small)
    assert ((whole == 0) == (part == 0)).mean() > 0.95


def test_tissue_command_writes_quality_and_its_figure_and_training_obeys(tmp_path: Path) -> None:
    import json

    from stainseq import keys, store
    from stainseq.cli import run

    path = tmp_path / "s.zarr"
    sdata = store.create(path, ss.datasets.toy_slide(size="small", seed=5), step="convert", parameters={})
    ss.pp.superpixels(sdata, tissue_key="none", pitch_um=24.0)
    command = ["tissue", str(path), "--quality", "--json", str(tmp_path / "q.json"), "--plot", str(tmp_path / "q.png")]
    assert run(command) == 0
    found = json.loads((tmp_path / "q.json").read_text())["quality"]
    sdata = store.open(path)
    table = sdata.tables["quality_superpixels"]
    assert sum(found.values()) == table.n_obs
    assert (tmp_path / "q.png").stat().st_size > 10_000
    assert run(["tissue", str(path), "--plot", str(tmp_path / "p.png")]) == 1
    # A slide of which a part is marked: neither learned from nor predicted.
    table.obs["quality"] = table.obs["quality"].where(np.arange(table.n_obs) % 5 > 0, "pen")
    store.write_element(sdata, "quality_superpixels", table, step="quality", parameters={})
    counts = np.random.default_rng(0).poisson(1.0, (table.n_obs, 5)).astype(np.int32)
    where = regions.get(sdata, "superpixels")
    counted = regions.table(where, sparse.csr_matrix(counts), var_names=list("abcde"))
    store.write_element(sdata, "counts_superpixels", counted, step="aggregate", parameters={})
    ss.tl.train(
        sdata, out=tmp_path / "m", region="superpixels", encoder="colour", normalize="raw", n_folds=2, block_um=240.0
    )
    good = set(table.obs_names[table.obs["quality"] == "good"])
    from stainseq import model

    learned = model.load(tmp_path / "m")
    assert set(learned.training["id"]) == good
    ss.tl.predict(learned, sdata)
    made = sdata.tables["pred_ridge_superpixels"]
    assert set(made.obs_names) == good
    assert (store.stamp_of(sdata, "pred_ridge_superpixels") or {})["left_out"]["pen"] >= table.n_obs // 5
    assert keys.FOLD in made.obs
    ss.tl.predict(learned, sdata, quality="none", key_added="all")
    assert sdata.tables["all"].n_obs == table.n_obs
