"""AnnData and MuData files: the right modality, whole files or none, clear errors."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import stainseq as ss
from stainseq import tables
from stainseq.errors import FormatError, InputError, MissingError


@pytest.fixture
def both():
    """A MuData of a modality with coordinates and one without."""
    import mudata

    rna, prot = ss.datasets.toy_table(seed=0), ss.datasets.toy_table(seed=1)
    del prot.obsm["spatial"]
    prot.var_names = [f"p{v}" for v in prot.var_names]
    with mudata.set_options(pull_on_update=False):
        return mudata.MuData({"rna": rna, "prot": prot})


def test_the_modality_with_coordinates_is_taken(both, tmp_path):
    path = ss.io.write_table(both, tmp_path / "a.h5mu")
    for read in (ss.io.read_table(path), ss.io.read_table(path, modality="rna"), ss.io.read_table(path / "rna")):
        assert (read.X != both["rna"].X).nnz == 0
        pd.testing.assert_frame_equal(read.obs, both["rna"].obs)
        np.testing.assert_array_equal(read.obsm["spatial"], both["rna"].obsm["spatial"])
    assert ss.io.read_table(path, modality="prot").var_names[0].startswith("p")
    assert tables.modality(both).var_names.equals(both["rna"].var_names)


def test_several_that_it_could_be_are_named(both, tmp_path):
    both["prot"].obsm["spatial"] = np.zeros((both["prot"].n_obs, 2))
    path = ss.io.write_table(both, tmp_path / "a.h5mu")
    with pytest.raises(MissingError, match=r"2 modalities.*--modality.*: .*rna"):
        ss.io.read_table(path)
    with pytest.raises(MissingError, match="no modality 'atac'"):
        ss.io.read_table(path / "atac")


def test_mudata_comes_back_whole(both, tmp_path):
    path = ss.io.write_table(both, tmp_path / "a.h5mu")
    back = tables.read_h5mu(path)
    assert list(back.mod) == list(both.mod)
    for name in both.mod:
        assert (back[name].X != both[name].X).nnz == 0


def test_a_failed_write_leaves_what_was_there(tmp_path):
    table = ss.datasets.toy_table(seed=0)
    path = ss.io.write_table(table, tmp_path / "a.h5ad")
    before = path.read_bytes()
    table.uns["odd"] = {"thing": object()}
    with pytest.raises(InputError, match="cannot be written"):
        ss.io.write_table(table, path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.h5ad"]


def test_endings_fit_the_object(both, tmp_path):
    with pytest.raises(InputError, match=r"a MuData is written as .h5mu.*name the file a.h5mu"):
        ss.io.write_table(both, tmp_path / "a.h5ad")
    with pytest.raises(InputError, match=r"an AnnData is written as .h5ad"):
        ss.io.write_table(both["rna"], tmp_path / "a.h5mu")


def test_what_is_no_table(tmp_path):
    with pytest.raises(InputError, match="not an h5ad or h5mu file"):
        ss.io.read_table(tmp_path / "a.csv")
    with pytest.raises(MissingError, match="no such file"):
        ss.io.read_table(tmp_path / "a.h5mu")
    for name in ("a.h5ad", "a.h5mu"):
        (tmp_path / name).write_bytes(b"nothing")
        with pytest.raises(FormatError, match="damaged"):
            ss.io.read_table(tmp_path / name)
    anndata.AnnData(sparse.csr_matrix((2, 2), dtype=np.float32)).write_h5ad(tmp_path / "b.h5ad")
    with pytest.raises(InputError, match="no modalities"):
        ss.io.read_table(tmp_path / "b.h5ad", modality="rna")
    (tmp_path / "b.h5ad").rename(tmp_path / "c.h5mu")
    with pytest.raises(FormatError, match="not a MuData file"):
        ss.io.read_table(tmp_path / "c.h5mu")


def _in_samples():
    """Two samples with coordinates in one MuData, beside a modality without."""
    import mudata

    rna, prot = ss.datasets.toy_table(seed=0), ss.datasets.toy_table(seed=1)
    rna.obs["sample"] = pd.Categorical(["a"] * 50 + ["b"] * 48)
    del prot.obsm["spatial"]
    prot.var_names = [f"p{v}" for v in prot.var_names]
    with mudata.set_options(pull_on_update=False):
        return mudata.MuData({"rna": rna, "prot": prot})


def test_analyses_take_mudata(tmp_path, capsys):
    from stainseq.cli import run

    made = _in_samples()
    path = ss.io.write_table(made, tmp_path / "a.h5mu")
    before = path.read_bytes()
    want = ss.tl.svg(made["rna"], method="moran")
    for data in (made, path, path / "rna"):
        pd.testing.assert_frame_equal(ss.tl.svg(data, method="moran"), want)
    assert "moran.rank" in made["rna"].var
    out = tmp_path / "d.h5ad"
    assert run(["domains", str(path), "--modality", "rna", "--sample", "a", "--n-domains", "3", "--out", str(out)]) == 0
    assert run(["integrate", str(path), "--n-domains", "3", "--out", str(tmp_path / "i.h5ad")]) == 0
    joint = ss.io.read_table(tmp_path / "i.h5ad")
    assert joint.obs["integrated"].nunique() == 3
    assert run(["markers", str(tmp_path / "i.h5ad"), "--domain-key", "integrated", "--min-fold-change", "1"]) == 0
    made["prot"].obsm["spatial"] = np.zeros((made["prot"].n_obs, 2))
    two = ss.io.write_table(made, tmp_path / "two.h5mu")
    assert run(["integrate", str(two), "--modality", "rna", "--n-domains", "3", "--csv", str(tmp_path / "i.csv")]) == 0
    capsys.readouterr()
    assert run(["svg", str(path), "--modality", "atac"]) == 1
    assert "no modality 'atac'" in capsys.readouterr().err
    assert run(["svg", str(path), "--out", str(tmp_path / "o.h5mu")]) == 1
    assert "written as h5ad" in capsys.readouterr().err
    assert run(["svg", str(path / "rna"), "--csv", str(path)]) == 1
    capsys.readouterr()
    assert path.read_bytes() == before
