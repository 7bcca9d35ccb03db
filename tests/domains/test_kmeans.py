"""k-means on smoothed components: what is its own; what every method promises is in tests/domains_methods."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import stainseq as ss
from stainseq.core import clusters
from stainseq.domains import kmeans
from stainseq.errors import InputError


@pytest.fixture
def table():
    return ss.datasets.toy_table(size="medium", seed=0)


def test_finds_the_planted_domains(table):
    found = ss.tl.domains(table, n_domains=3, method="kmeans", seed=0)
    truth = table.obs["truth"].cat.codes.to_numpy()
    assert clusters.adjusted_rand(truth, found["refined"].astype(int).to_numpy()) > 0.45
    plain = kmeans.assign(table.X.toarray().astype(float), coordinates=table.obsm["spatial"], n_domains=3, smoothing=0)
    assert len(np.unique(plain[0])) == 3


def test_bad_smoothing(table):
    with pytest.raises(InputError, match="smoothing"):
        ss.tl.domains(table, n_domains=3, method="kmeans", smoothing=2.0)


@pytest.mark.real
@pytest.mark.parametrize("method", ["kmeans", None])
def test_olfactory_bulb_does_not_collapse(data_dir, method):
    """Means over all neighbours bring the five layers down to .30 (plain components: .62)."""
    from anndata import AnnData
    from scipy import sparse

    counts = pd.read_csv(data_dir / "mob_rep11" / "Rep11_MOB_counts.tsv.gz", sep="\t", index_col=0)
    layers = pd.read_csv(data_dir / "mob_rep11" / "spots_layers.csv").set_index("spot").reindex(counts.index)
    table = AnnData(sparse.csr_matrix(counts.to_numpy()), obs=pd.DataFrame(index=counts.index))
    table.obsm["spatial"] = layers[["x", "y"]].to_numpy() * 200
    found = ss.tl.domains(table, n_domains=5, method=method)
    known = layers["layer"].notna().to_numpy()
    codes = pd.factorize(layers["layer"][known])[0]
    assert clusters.adjusted_rand(codes, found["domain"].astype(int).to_numpy()[known]) > 0.5
