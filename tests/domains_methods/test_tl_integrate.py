"""One label set over samples."""

from __future__ import annotations

import numpy as np
import pytest

import stainseq as ss
from stainseq.core.clusters import adjusted_rand, mixing
from stainseq.errors import InputError, MissingError

anndata = pytest.importorskip("anndata")


@pytest.fixture
def samples(cells):
    """Two sections of one tissue; in the second, every third gene is caught three times as often."""
    rng = np.random.default_rng(0)
    rate = np.exp(rng.normal(0, 1, 50) + rng.normal(0, 0.7, (4, 50)))
    out = []
    for number in range(2):
        data = cells(700, seed=number)
        shift = np.where(np.arange(50) % 3 == 0, 3.0, 1.0) if number else 1.0
        counts = rng.poisson(rate[data.layer] * shift).astype(np.float32)
        table = anndata.AnnData(counts, obsm={"spatial": data.coordinates * (1 + number)})
        table.obs_names = [f"c{i}" for i in range(700)]
        table.var_names = [f"g{j}" for j in range(50)]
        table.obs["truth"] = data.layer.astype(str)
        out.append(table)
    return out


@pytest.mark.parametrize("method", ["kriging", "spagcn"])
def test_labels_mean_the_same_in_each_sample(samples, method):
    found = ss.tl.integrate(samples, n_domains=4, method=method)
    assert found["domain"].nunique() == found["refined"].nunique() == 4
    truth = np.concatenate([s.obs["truth"] for s in samples])
    assert adjusted_rand(found["refined"].to_numpy(), truth) > (0.9 if method == "kriging" else 0.5)
    assert 0.4 < found.attrs["mixing"] <= 1.1
    assert found["sample"].unique().tolist() == ["sample1", "sample2"]
    for table in samples:
        assert table.obs["integrated"].astype(str).nunique() <= 4
        assert list(table.obs["integrated"].cat.categories) == ["0", "1", "2", "3"]
        assert table.obsm["integrated.probabilities"].shape == (700, 4)
        assert table.uns["integrated"]["mixing"] == found.attrs["mixing"]


def test_files_and_a_joint_table(samples, tmp_path):
    one, two = samples
    two = two[:, ::-1].copy()
    two.var_names = [n if n != "g3" else "other" for n in two.var_names]
    one.write_h5ad(tmp_path / "a.h5ad")
    two.write_h5ad(tmp_path / "b.h5ad")
    before = (tmp_path / "a.h5ad").read_bytes()
    files = [tmp_path / "b.h5ad", tmp_path / "a.h5ad"]
    found = ss.tl.integrate(
        files, n_domains=4, method="kriging", key="joint", out=tmp_path / "j.h5ad", csv=tmp_path / "j.csv"
    )
    assert (tmp_path / "a.h5ad").read_bytes() == before
    joint = anndata.read_h5ad(tmp_path / "j.h5ad")
    assert joint.shape == (1400, 49)
    assert joint.obs["sample"].unique().tolist() == ["a", "b"]
    assert joint.obs_names[0] == "a:c0"
    assert (joint.obs["joint"].astype(str).to_numpy() == found["refined"].to_numpy()).all()
    assert (tmp_path / "j.csv").read_text().startswith("sample,id,domain,refined,probability")
    again = ss.tl.integrate(files[::-1], n_domains=4, method="kriging", key="joint")
    assert again.equals(found)
    # the joint table holds both samples: the same again from one file
    third = ss.tl.integrate(tmp_path / "j.h5ad", n_domains=4, method="kriging", key="again")
    assert (third["refined"].to_numpy() == found["refined"].to_numpy()).all()


def test_refusals(samples):
    with pytest.raises(InputError, match="1 sample to integrate"):
        ss.tl.integrate([samples[0]], n_domains=3)
    with pytest.raises(InputError, match="1 sample to integrate"):
        ss.tl.integrate(samples[0], n_domains=3)
    samples[1].var_names = [f"x{j}" for j in range(50)]
    with pytest.raises(InputError, match="no gene in common"):
        ss.tl.integrate(samples, n_domains=3)
    for table in samples:
        table.obs["sample"] = "same"
    with pytest.raises(InputError, match="two samples are named 'same'"):
        ss.tl.integrate(samples, n_domains=3)
    together = anndata.concat({"a": samples[0], "b": samples[0]}, label="sample", index_unique="-")
    together.obs.loc[together.obs_names[:3], "sample"] = None
    with pytest.raises(InputError, match="3 rows have no sample"):
        ss.tl.integrate(together, n_domains=3)


@pytest.mark.parametrize("method", ["kmeans", "kriging"])
@pytest.mark.parametrize("correction", ["none", "centre", "harmony"])
def test_corrections(samples, method, correction):
    if correction == "harmony":
        pytest.importorskip("harmonypy")
    found = ss.tl.integrate(samples, n_domains=4, method=method, correction=correction)
    truth = np.concatenate([s.obs["truth"] for s in samples])
    assert found["domain"].nunique() == 4
    assert adjusted_rand(found["refined"].to_numpy(), truth) > 0.85
    if (method, correction) == ("kmeans", "none"):
        assert found.attrs["mixing"] < 0.3  # the shift of every third gene stays
    else:
        assert found.attrs["mixing"] > 0.5
    assert samples[0].uns["integrated"]["params"]["correction"] == correction
    with pytest.raises(InputError, match="correction is 'no'"):
        ss.tl.integrate(samples, n_domains=4, method=method, correction="no")


def test_harmony_equals_harmonypy(samples):
    harmonypy = pytest.importorskip("harmonypy")
    from stainseq.domains._batches import correct

    rng = np.random.default_rng(0)
    values, codes = rng.normal(size=(600, 5)), np.repeat([0, 1], 300)
    values[300:] += [3, 0, 0, 0, 0]
    found = correct(values, codes, "harmony", seed=1)
    other = harmonypy.run_harmony(values.T, {"s": codes}, "s", random_state=1, verbose=False).Z_corr
    np.testing.assert_array_equal(found, other)
    assert mixing(found, codes) > 0.9 > 0.5 > mixing(values, codes)
    assert correct(values, np.zeros(600, int), "harmony", seed=1) is values
    assert len(correct(values[295:305], codes[295:305], "harmony", seed=1)) == 10


def test_without_harmonypy_the_fix_is_told(samples, monkeypatch):
    import sys

    from stainseq.errors import DependencyError

    monkeypatch.setitem(sys.modules, "harmonypy", None)
    with pytest.raises(DependencyError, match=r"pip install 'stainseq\[harmony\]'"):
        ss.tl.integrate(samples, n_domains=4, correction="harmony")


@pytest.mark.parametrize("correction", ["none", "centre", "harmony"])
def test_order_of_rows_and_samples_does_not_matter(samples, correction):
    if correction == "harmony":
        pytest.importorskip("harmonypy")
    for number, table in enumerate(samples):
        table.obs["sample"] = f"s{number}"
    found = ss.tl.integrate(samples, n_domains=4, correction=correction)
    rng = np.random.default_rng(1)
    order = [rng.permutation(table.n_obs) for table in samples]
    shuffled = [table[rows].copy() for table, rows in zip(samples, order, strict=True)]
    other = ss.tl.integrate(shuffled[::-1], n_domains=4, correction=correction)
    back = np.concatenate([order[0], 700 + order[1]])
    assert other.equals(found.iloc[back].reset_index(drop=True))
    assert other.attrs["mixing"] == pytest.approx(found.attrs["mixing"], abs=1e-12)


def test_bad_values_are_one_error(samples):
    for bad, words in ((np.nan, "NaN or infinite values, sample 'sample2'"), (-3.0, "counts are negative")):
        tables = [table.copy() for table in samples]
        tables[1].X[5, 5] = bad
        with pytest.raises(InputError, match=words):
            ss.tl.integrate(tables, n_domains=3)
    tables = [table.copy() for table in samples]
    tables[1].X[:] = np.log1p(tables[1].X)
    with pytest.raises(InputError, match="sample 'sample1' holds raw counts, sample 'sample2' does not"):
        ss.tl.integrate(tables, n_domains=3)
    tables = [table.copy() for table in samples]
    for table in tables:
        table.X[:] = 0
    with pytest.raises(InputError, match="every count is zero"):
        ss.tl.integrate(tables, n_domains=3)
    with pytest.raises(InputError, match="1401 domains of 1400 rows"):
        ss.tl.integrate(samples, n_domains=1401)
    del samples[1].obsm["spatial"]
    with pytest.raises(MissingError, match="no coordinates"):
        ss.tl.integrate(samples, n_domains=3)


def test_genes_without_counts_and_uneven_samples(samples):
    one, two = samples
    one.X[:, 3] = 0
    two = two[:5].copy()
    found = ss.tl.integrate([one, two], n_domains=4)
    assert found["refined"].nunique() == 4
    assert (found["sample"] == "sample2").sum() == 5


def test_images_alone(samples):
    """A features table is a dense table of floats of either sign; the layers are in its first columns."""
    rng = np.random.default_rng(0)
    tables = []
    for table in samples:
        layer = table.obs["truth"].astype(int).to_numpy()
        features = rng.normal(size=(700, 16)).astype(np.float32)
        features[:, :4] += 2 * np.eye(4)[layer]
        tables.append(anndata.AnnData(features, obs=table.obs, obsm={"spatial": table.obsm["spatial"]}))
    truth = np.concatenate([s.obs["truth"] for s in samples])
    for method in ("kriging", "kmeans"):
        found = ss.tl.integrate(tables, n_domains=4, method=method)
        assert adjusted_rand(found["refined"].to_numpy(), truth) > 0.9
        assert found.attrs["mixing"] > 0.5


def test_image_features_beside_expression(samples):
    """Expression without any layers; they are in the vectors of the image alone."""
    rng = np.random.default_rng(0)
    truth = np.concatenate([s.obs["truth"] for s in samples])
    for table in samples:
        layer = table.obs["truth"].astype(int).to_numpy()
        table.obsm["seen"] = (rng.normal(size=(700, 8)) + 3 * np.eye(4, 8)[layer]).astype(np.float32)
        table.X = rng.poisson(2, table.shape).astype(np.float32)
    without = ss.tl.integrate(samples, n_domains=4)
    found = ss.tl.integrate(samples, n_domains=4, image_features="seen")
    assert adjusted_rand(without["refined"].to_numpy(), truth) < 0.2
    assert adjusted_rand(found["refined"].to_numpy(), truth) > 0.6
    assert samples[0].uns["integrated"]["params"]["image_features"] == "seen"
    with pytest.raises(MissingError, match="no features table 'unseen'"):
        ss.tl.integrate(samples, n_domains=4, image_features="unseen")
    with pytest.raises(MissingError, match="no image"):
        ss.tl.integrate(samples, n_domains=4, histology=True)


def test_files_of_one_name_are_refused(samples, tmp_path):
    for number, table in enumerate(samples):
        table.obs["sample"] = f"a{'_/'[number]}b"
    with pytest.raises(InputError, match="two samples would be written to one file"):
        ss.tl.integrate(samples, n_domains=3, out=tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_mixing_of_known_cases():
    rng = np.random.default_rng(0)
    sample = np.repeat([0, 1], 500)
    together = rng.normal(size=(1000, 3))
    assert mixing(together, sample) > 0.95
    assert mixing(together + 100 * sample[:, None], sample) < 0.01
    with pytest.raises(InputError, match="one sample"):
        mixing(together, np.zeros(1000))


@pytest.mark.real
def test_three_prefrontal_slices(data_dir):
    tables = [anndata.read_h5ad(data_dir / "starmap" / f"mpfc_{n}.h5ad") for n in ("BZ5", "BZ9", "BZ14")]
    joint = ss.tl.integrate(tables, n_domains=4, method="kriging")
    for table in tables:
        name = str(table.obs["sample"].iloc[0])
        alone = ss.tl.domains(table, n_domains=4, method="kriging")
        truth = table.obs["domain"].astype(str).to_numpy()
        together = joint[joint["sample"] == name]["refined"].to_numpy()
        assert adjusted_rand(together, truth) > adjusted_rand(alone["refined"].to_numpy(), truth) - 0.03
