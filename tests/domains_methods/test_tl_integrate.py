"""One label set over samples."""

from __future__ import annotations

import numpy as np
import pytest

import stainseq as ss
from stainseq.core.clusters import adjusted_rand, mixing
from stainseq.errors import InputError

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
