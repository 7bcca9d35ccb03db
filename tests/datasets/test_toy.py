"""The toy slide keeps its planted truth."""

from __future__ import annotations

import numpy as np
import pytest

import stainseq as ss
from stainseq import keys
from stainseq.errors import InputError


@pytest.fixture(scope="module")
def slide():
    return ss.datasets.toy_slide(seed=0)


def test_layout_is_the_stores(slide):
    from spatialdata.transformations import get_transformation

    table = slide["counts_spots"]
    assert set(slide.coordinate_systems) == {"global", "um"}
    assert table.uns["spatialdata_attrs"]["region"] == "spots"
    assert list(table.obs_names) == list(table.obs["instance_id"]) == list(slide["spots"].index)
    assert table.X.dtype == np.int32
    assert table.X.format == "csr"
    assert slide.attrs["stainseq"]["mpp"] == 0.8
    matrix = get_transformation(slide["he"], "um").to_affine_matrix(("x", "y"), ("x", "y"))
    np.testing.assert_allclose(matrix, np.diag([0.8, 0.8, 1]))
    xy = np.c_[slide["spots"].geometry.x, slide["spots"].geometry.y]
    np.testing.assert_allclose(xy, table.obsm["spatial"])
    assert len(slide["he"].children) == 3


def test_same_seed_same_slide_other_seed_other_slide(slide):
    again, other = ss.datasets.toy_table(seed=0), ss.datasets.toy_table(seed=1)
    assert (again.X != slide["counts_spots"].X).nnz == 0
    assert again.n_obs != other.n_obs or (again.X != other.X).nnz > 0
    assert list(again.var_names) == list(other.var_names)


def test_spots_lie_on_tissue(slide):
    picture = slide["he"]["scale0"]["image"].to_numpy()
    x, y = (np.asarray(slide["counts_spots"].obsm["spatial"]) / 0.8).astype(int).T
    # Lumina are white too, so not every centre is coloured.
    assert (picture[1, y, x] < 225).mean() > 0.85


def test_the_law_carries_over_between_slides_for_morphology_genes_only():
    """Least squares from what the picture shows, fitted on three slides, predicts the rates of a fourth."""
    from stainseq.datasets import _toy as module

    size = module._SIZES["small"]
    xs, ys, kinds = [], [], []
    for seed in range(4):
        drawn = module._draw(size, seed)
        xy, _ = module._lattice(size, drawn)
        measured, _ = module._under_spots(drawn, xy)
        rate, _, kinds = module._rates(size, drawn, xy, seed, "P1")
        xs.append(np.c_[measured, np.ones(len(xy))])
        ys.append(np.log(rate / rate.sum(1, keepdims=True)))
    coefficients, *_ = np.linalg.lstsq(np.vstack(xs[:3]), np.vstack(ys[:3]), rcond=None)
    fit = xs[3] @ coefficients
    r = np.array([np.corrcoef(fit[:, g], ys[3][:, g])[0, 1] for g in range(size.genes)])
    kinds = np.array(kinds)
    assert np.median(r[kinds == "morphology"]) > 0.85
    assert np.median(np.abs(r[kinds == "hidden"])) < 0.4


def test_counts_scatter_around_the_rate(slide):
    table = slide["counts_spots"]
    ratio = table.X.sum() / table.layers["rate"].sum()
    assert 0.95 < ratio < 1.05


def test_stain_differs_between_slides(slide):
    other = ss.datasets.toy_slide(seed=3)
    means = [s["he"]["scale2"]["image"].to_numpy().mean((1, 2)) for s in (slide, other)]
    assert np.abs(means[0] - means[1]).max() > 2


def test_unknown_size_lists_those_there_are():
    with pytest.raises(InputError, match="small, medium, large"):
        ss.datasets.toy_slide(size="huge")


def test_writes_and_reads_as_plain_spatialdata(slide, tmp_path):
    import spatialdata

    slide.write(tmp_path / "toy.zarr")
    back = spatialdata.read_zarr(tmp_path / "toy.zarr")
    assert (back["counts_spots"].X != slide["counts_spots"].X).nnz == 0
    assert back["counts_spots"].obs["truth"].equals(slide["counts_spots"].obs["truth"])
    assert back.attrs[keys.STAMP]["patient"] == "P1"
