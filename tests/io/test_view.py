"""What a table holds, the same in memory and from a file, and every problem by name."""

from __future__ import annotations

import json
import warnings

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import stainseq as ss
from stainseq._files import plain
from stainseq.cli import run
from stainseq.errors import FormatError, InputError, MissingError


def _holds(found, name):
    return next(e["holds"] for e in found["elements"] if e["name"] == name)


@pytest.fixture(scope="module")
def table():
    """A table with every result that is named."""
    made = ss.datasets.toy_table(seed=0)
    ss.tl.svg(made, method="moran")
    ss.tl.domains(made, n_domains=3, method="kmeans", key="km")
    ss.tl.markers(made, domain_key="km.refined", max_q=1, min_fold_change=0, min_in_group_fraction=0)
    ss.tl.metagene(made, target="0", domain_key="km.refined")
    return made


def test_a_file_and_memory_tell_the_same(table, tmp_path):
    path = ss.io.write_table(table, tmp_path / "a.h5ad")
    memory, file = ss.io.view(table), ss.io.view(path)
    assert file.pop("path") == str(path)
    assert memory == file
    assert memory["what"] == "AnnData, 98 x 60"
    dense = table.X.toarray()
    want = f"int32 csr, counts, 0 to {dense.max()}, {100 * (dense == 0).mean():.1f} % zeros"
    assert _holds(memory, "X") == want
    rate = table.layers["rate"]
    assert _holds(memory, "rate") == f"float32, values, {rate.min():.6g} to {rate.max():.6g}, 0.0 % zeros"
    xy = table.obsm["spatial"]
    assert _holds(memory, "spatial").startswith(f"x {xy[:, 0].min():.6g} to {xy[:, 0].max():.6g}, y ")
    assert "nearest neighbours 70 apart (taken as um)" in _holds(memory, "spatial")
    assert _holds(memory, "moran") == f"{int(table.var['moran.svg'].sum())} spatially variable of 60 tested"
    assert _holds(memory, "km") == "3 domains, refined"
    assert _holds(memory, "markers").endswith("markers of 3 domains")
    assert _holds(memory, "metagene.0") == table.uns["metagene.0"]["formula"]
    assert memory["types"]["obs"]["truth"] == "cat"
    assert memory["problems"] == []


def test_it_prints_as_text_and_is_json(table, capsys, tmp_path):
    text = str(ss.io.view(table))
    assert text.splitlines()[0] == "AnnData, 98 x 60"
    assert "truth <cat>" in text
    assert all(len(line) <= 140 for line in text.splitlines())
    path = ss.io.write_table(table, tmp_path / "a.h5ad")
    assert run(["info", str(path), "--json", "/dev/stdout"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(plain(dict(ss.io.view(path)))))


def test_samples_and_one_of_them(tmp_path):
    made = ss.datasets.toy_table(seed=0)
    made.obs["sample"] = pd.Categorical(["s2"] * 40 + ["s1"] * 58)
    assert ss.io.view(made)["sizes"]["samples"] == {"s1": 58, "s2": 40}
    assert ss.io.view(made, sample="s2")["sizes"]["rows"] == 40
    assert ss.io.view(ss.io.write_table(made, tmp_path / "a.h5ad"), sample="s1")["sizes"]["rows"] == 58
    with pytest.raises(MissingError, match=r"no sample 's3'.*one of: s2, s1"):
        ss.io.view(made, sample="s3")
    with pytest.raises(MissingError, match="no obs"):
        ss.io.view(ss.datasets.toy_table(seed=0), sample="s1")


def _bare(x, spatial=True):
    made = anndata.AnnData(x, obs=pd.DataFrame(index=[f"r{i}" for i in range(x.shape[0])]))
    if spatial:
        made.obsm["spatial"] = np.random.default_rng(0).uniform(0, 100, (x.shape[0], 2))
    return made


def test_problems_are_named(tmp_path):
    rng = np.random.default_rng(0)
    counts = rng.poisson(2.0, (20, 4)).astype(np.float32)

    def told(made):
        """The problems, which have to be the same from a file."""
        memory = ss.io.view(made)["problems"]
        made.write_h5ad(tmp_path / "a.h5ad")
        assert ss.io.view(tmp_path / "a.h5ad")["problems"] == memory
        return "\n".join(memory)

    assert told(_bare(counts)) == ""
    assert "no obsm" in told(_bare(counts, spatial=False))
    assert "no raw counts" in told(_bare(counts + 0.5))
    assert "negative whole numbers" in told(_bare(counts - 5))
    holes = counts.copy()
    holes[3, 1:3] = np.nan, np.inf
    assert "X holds 2 values that are NaN or infinite" in told(_bare(holes))
    assert "X holds 1 values" in told(_bare(sparse.csr_matrix(np.where(np.isinf(holes), 1, holes))))
    lost = _bare(counts)
    lost.obsm["spatial"][2] = np.nan
    lost.obsm["spatial"][5] = lost.obsm["spatial"][6]
    assert "1 rows have no coordinates" in told(lost)
    assert "1 rows lie at the same place" in told(lost)
    lost.obs["sample"] = ["a"] * 6 + ["b"] * 14  # rows 5 and 6 are of different samples: no problem
    assert "same place" not in told(lost)
    scanpy = _bare(counts)
    scanpy.uns["spatial"] = {"lib": {"scalefactors": {"tissue_hires_scalef": 0.1}}}
    assert "may be in pixels" in told(scanpy)
    twice = _bare(counts)
    twice.obs_names = ["r0", "r0", *twice.obs_names[2:]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # anndata says so, too
        assert "1 ids occur again, such as 'r0'" in told(twice)


def test_layers_with_counts_are_counts():
    made = _bare(np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32))
    made.layers["counts"] = sparse.csc_matrix(np.ones((20, 4), np.int32))
    found = ss.io.view(made)
    assert found["problems"] == []
    assert _holds(found, "counts") == "int32 csc, counts, 1 to 1, 0.0 % zeros"


@pytest.mark.parametrize("form", ["csr_matrix", "csc_matrix", "dense"])
def test_tables_that_are_not_in_memory(form, tmp_path):
    """Backed and Dask matrices are read in pieces, and told as what they are in memory."""
    import dask.array as da

    counts = np.random.default_rng(0).poisson(0.7, (20, 4)).astype(np.int32)
    made = _bare(counts if form == "dense" else getattr(sparse, form)(counts))
    made.write_h5ad(tmp_path / "a.h5ad")
    want = _holds(ss.io.view(made), "X").split(", ", 1)[1]
    backed = anndata.read_h5ad(tmp_path / "a.h5ad", backed="r")
    assert _holds(ss.io.view(backed), "X").split(", ", 1)[1] == want
    backed.file.close()
    lazy = _bare(da.from_array(counts, chunks=(7, 4)).map_blocks(sparse.csr_matrix))
    assert _holds(ss.io.view(lazy), "X").split(", ", 1)[1] == want


def test_mudata_and_slides(table, tmp_path):
    import mudata

    other = ss.datasets.toy_table(seed=1)
    del other.obsm["spatial"]
    other.var_names = [f"p{v}" for v in other.var_names]
    with mudata.set_options(pull_on_update=False):
        both = mudata.MuData({"rna": table, "prot": other})
    path = ss.io.write_table(both, tmp_path / "a.h5mu")
    memory, file = ss.io.view(both), ss.io.view(path)
    assert memory["what"] == "MuData, 2 modalities"
    assert memory["sizes"] == {"rna": "98 x 60", "prot": f"{other.n_obs} x 60"}
    assert file["tables"]["rna"] == memory["tables"]["rna"]
    assert len(memory["problems"]) == 1
    assert memory["problems"][0].startswith("prot: no obsm")
    assert ss.io.view(path / "rna")["what"] == "AnnData, 98 x 60"
    slide = ss.io.view(ss.datasets.toy_slide(seed=0))
    assert slide["what"] == "slide, 1 tables"
    assert "counts_spots" in str(slide)


def test_what_is_no_table(tmp_path):
    with pytest.raises(InputError, match="a list is no table"):
        ss.io.view([1, 2])
    with pytest.raises(MissingError, match="no such file"):
        ss.io.view(tmp_path / "a.h5ad")
    (tmp_path / "a.h5ad").write_bytes(b"nothing")
    with pytest.raises(FormatError, match="damaged"):
        ss.io.view(tmp_path / "a.h5ad")


def test_info_of_a_store_names_all_results(table, tmp_path):
    from stainseq import store

    slide = ss.datasets.toy_slide(seed=0)
    slide.tables["counts_spots"].uns["metagene.0"] = table.uns["metagene.0"]
    slide.tables["counts_spots"].uns["markers"] = table.uns["markers"]
    store.create(tmp_path / "a.zarr", slide, step="convert", parameters={})
    holds = {e["name"]: e["holds"] for e in ss.io.info(tmp_path / "a.zarr")["elements"]}
    assert holds["counts_spots"] == "98 x 60 of spots, int32 csr; results markers, metagene.0"
