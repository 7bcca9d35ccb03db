"""A folder of samples: what is saved comes back, all of it or nothing, whatever kills a save; no pickles."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import sparse

import stainseq as ss
from stainseq import store
from stainseq.cli import run
from stainseq.errors import FormatError, InputError, MissingError, StoreError


def _table(seed=0, n=5, genes=3):
    rng = np.random.default_rng(seed)
    made = anndata.AnnData(
        sparse.csr_matrix(rng.poisson(1.0, (n, genes)).astype(np.int32)),
        obs=pd.DataFrame({"k": pd.Categorical(["a", "b"] * n)[:n]}, index=[f"s{seed}_{i}" for i in range(n)]),
        var=pd.DataFrame(index=[f"g{i}" for i in range(genes)]),
        obsm={"spatial": rng.uniform(0, 9, (n, 2))},
    )
    made.uns["svg"] = {"params": {"n": 3}, "table": pd.DataFrame({"gene": ["x"], "p": [0.5]})}
    return made


def _same(a, b):
    assert (a.X != b.X).nnz == 0
    pd.testing.assert_frame_equal(a.obs, b.obs)
    pd.testing.assert_frame_equal(a.var, b.var)
    for key in a.obsm:
        np.testing.assert_array_equal(a.obsm[key], b.obsm[key])
    assert a.uns["svg"]["params"] == b.uns["svg"]["params"]


_file_name = st.text(
    st.characters(blacklist_categories=("Cs", "Cc"), blacklist_characters='/\\:*?"<>|.'), min_size=1, max_size=12
)
_text = st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\0"), max_size=8)


@st.composite
def _experiments(draw):
    names = draw(st.lists(_file_name, min_size=1, max_size=4, unique_by=str.casefold))
    columns = draw(
        st.lists(_file_name.filter(lambda c: c not in ("sample", "modality", "path")), max_size=3, unique=True)
    )
    values = {c: draw(st.lists(_text, min_size=len(names), max_size=len(names))) for c in columns}
    modality = draw(st.lists(st.sampled_from(["spatial", "rna"]), min_size=len(names), max_size=len(names)))
    metadata = pd.DataFrame(values | {"modality": modality}, index=names, dtype=object)
    shapes = draw(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 3)), min_size=len(names), max_size=len(names)))
    return metadata, {n: _table(i, *shape) for i, (n, shape) in enumerate(zip(names, shapes, strict=True))}


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(_experiments())
def test_what_is_saved_comes_back(tmp_path, made):
    metadata, samples = made
    folder = tmp_path / "round trip"
    ss.io.write_experiment(samples, folder, metadata=metadata, overwrite=True)
    back = ss.io.read_experiment(folder)
    assert list(back.samples) == list(samples)
    for name, table in samples.items():
        _same(back.samples[name], table)
    want = metadata.copy()
    want.index.name = "sample"
    pd.testing.assert_frame_equal(back.metadata[list(want)], want, check_column_type=False)
    assert back.integrated is None
    listed = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert listed == {"metadata.tsv"} | {f"{m}/{n}.h5ad" for n, m in metadata["modality"].items()}


def test_metadata_may_hold_any_text(tmp_path):
    odd = ["a\rb", "tab\there", 'a "quote"', "new\nline", " NA", "", "\r\n", "é中"]
    metadata = pd.DataFrame({"x": odd, "y\r": odd[::-1]}, index=[f"s{i}" for i in range(len(odd))])
    ss.io.write_experiment({n: _table(0) for n in metadata.index}, tmp_path / "e", metadata=metadata)
    back = ss.io.read_experiment(tmp_path / "e").metadata
    assert back["x"].tolist() == odd
    assert back["y\r"].tolist() == odd[::-1]


def test_changes_are_saved_and_samples_that_went_are_removed(tmp_path):
    folder = ss.io.write_experiment({"a": _table(0), "b": _table(1)}, tmp_path / "e", integrated=_table(9))
    (folder / "notes.txt").write_text("mine")
    first = ss.io.read_experiment(folder)
    first.samples["a"].obs["new"] = 1.5
    del first.samples["b"]
    ss.io.write_experiment(first._replace(metadata=first.metadata.loc[["a"]]), folder, overwrite=True)
    second = ss.io.read_experiment(folder)
    assert list(second.samples) == ["a"]
    assert (second.samples["a"].obs["new"] == 1.5).all()
    _same(second.integrated, _table(9))
    assert not (folder / "expression" / "b.h5ad").exists()
    assert (folder / "notes.txt").read_text() == "mine"


def test_nothing_is_replaced_unasked(tmp_path):
    folder = ss.io.write_experiment({"a": _table(0)}, tmp_path / "e")
    with pytest.raises(StoreError, match="an experiment is there already"):
        ss.io.write_experiment({"a": _table(1)}, folder)
    _same(ss.io.read_experiment(folder).samples["a"], _table(0))


def test_a_save_that_is_killed_anywhere_leaves_the_old_or_the_new(tmp_path, monkeypatch):
    """Every rename, removal and write of the save is the last one in turn."""
    old = {"a": _table(0), "b": _table(1), "c": _table(2)}
    new = {"a": _table(3), "b": _table(4), "d": _table(5)}
    seen = set()
    monkeypatch.setattr(os, "fsync", lambda fd: None)  # only slow here: what is synced is not lost by a kill
    first = ss.io.write_experiment(old, tmp_path / "first")
    for step in range(60):
        folder = Path(shutil.copytree(first, tmp_path / f"e{step}"))
        left = [step]

        def dying(real, left=left):
            def call(*args, **kwargs):
                left[0] -= 1
                if left[0] < 0:
                    raise KeyboardInterrupt
                return real(*args, **kwargs)

            return call

        with monkeypatch.context() as patch:
            for name in ("replace", "rmdir", "unlink", "mkdir"):
                patch.setattr(os, name, dying(getattr(os, name)))
            patch.setattr(shutil, "rmtree", lambda *a, **k: None)  # the dead tidy nothing up
            try:
                ss.io.write_experiment(new, folder, overwrite=True)
                finished = True
            except KeyboardInterrupt:
                finished = False
        found = ss.io.read_experiment(folder).samples
        kept = list(found)
        assert kept in (["a", "b", "c"], ["a", "b", "d"])
        for name, table in (old if kept[-1] == "c" else new).items():
            _same(found[name], table)
        assert {p.stem for p in (folder / "expression").iterdir()} == set(kept)
        seen.add((kept[-1], finished))
        if finished:
            break
        if step % 4 and kept[-1] == "c":
            continue
        ss.io.write_experiment({"a": _table(3)}, folder, overwrite=True)  # the next save tidies up
        assert not [p.name for p in folder.iterdir() if p.name.startswith(".")]
    assert seen == {("c", False), ("d", False), ("d", True)}


def test_slides_are_referred_to(tmp_path):
    slide = store.create(tmp_path / "slides" / "C2.zarr", ss.datasets.toy_slide(seed=0), step="convert", parameters={})
    folder = ss.io.write_experiment({"C2": slide, "t": _table(0)}, tmp_path / "e")
    back = ss.io.read_experiment(folder)
    assert back.metadata.loc["C2", "path"] == os.path.join("..", "slides", "C2.zarr")
    assert "he" in back.samples["C2"].images
    os.rename(tmp_path / "slides", tmp_path / "moved")
    with pytest.raises(MissingError, match=r"not there: .*C2.zarr"):
        ss.io.read_experiment(folder)
    assert list(ss.io.read_experiment(folder, samples="t").samples) == ["t"]
    with pytest.raises(InputError, match="not on disk"):
        ss.io.write_experiment({"x": ss.datasets.toy_slide(seed=0)}, tmp_path / "f")


def test_a_folder_of_exprmat_is_read_and_its_pickle_is_not(tmp_path):
    """Layout as exprmat 0.2 writes it; unpickling spec.pkl would make a file."""
    import mudata

    folder = tmp_path / "visium"
    (folder / "spatial-bin").mkdir(parents=True)
    (folder / "rna").mkdir()
    for place in ("spatial-bin/p1", "spatial-bin/p2", "rna/p1"):
        _table(len(place)).write_h5ad(folder / f"{place}.h5ad")
    (folder / "metadata.tsv").write_text(
        "location\tsample\tbatch\tgroup\tmodality\ttaxa\n"
        "raw/p1\tp1\tb1\ttumor\tspatial-bin\thsa\nraw/p2\tp2\tb2\ttumor\tspatial-bin\thsa\nraw/x\tp1\tb1\tNA\trna\thsa\n"
    )

    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "opened",))

    (folder / "spec.pkl").write_bytes(pickle.dumps(Trap()))
    joint = _table(7)
    with mudata.set_options(pull_on_update=False):
        ss.io.write_table(mudata.MuData({"spatial-bin": joint}), folder / "integrated.h5mu")
    with pytest.raises(InputError, match=r"'p1' is listed twice.*name a modality: rna, spatial-bin"):
        ss.io.read_experiment(folder)
    read = ss.io.read_experiment(folder, modality="spatial-bin")
    assert list(read.samples) == ["p1", "p2"]
    assert read.metadata.loc["p2"].to_dict() == {
        "location": "raw/p2", "batch": "b2", "group": "tumor", "modality": "spatial-bin", "taxa": "hsa", "path": "",
    }  # fmt: skip
    assert (
        ss.io.read_experiment(folder, modality="rna").metadata.loc["p1", "group"] == "NA"
    )  # text, not a missing value
    _same(read.integrated["spatial-bin"], joint)
    assert not (tmp_path / "opened").exists()
    found = ss.io.info(folder)
    assert found["what"] == "experiment, 3 samples, integrated.h5mu"
    assert {"name": "p2", "kind": "spatial-bin", "holds": "5 x 3"} in found["elements"]


def test_info_prints(tmp_path, capsys):
    folder = ss.io.write_experiment({"a": _table(0)}, tmp_path / "e")
    assert run(["info", str(folder)]) == 0
    assert "experiment, 1 samples" in capsys.readouterr().out
    (folder / "expression" / "a.h5ad").unlink()
    assert run(["info", str(folder), "--json", "/dev/stdout"]) == 0
    assert "not there" in json.loads(capsys.readouterr().out)["problems"][0]


def test_errors(tmp_path):
    folder = tmp_path / "e"
    one = {"a": _table(0)}
    with pytest.raises(InputError, match="no sample to save"):
        ss.io.write_experiment({}, folder)
    with pytest.raises(InputError, match="differ in a, b"):
        ss.io.write_experiment(one, folder, metadata=pd.DataFrame({"sample": ["b"]}))
    with pytest.raises(InputError, match="list a sample twice"):
        ss.io.write_experiment(one, folder, metadata=pd.DataFrame(index=["a", "a"]))
    for name in ("a/b", "..", ".hidden", "a\nb", ""):
        with pytest.raises(InputError, match="cannot be the name of a file"):
            ss.io.write_experiment({name: _table(0)}, folder)
    with pytest.raises(InputError, match="cannot be the name of a file"):
        ss.io.write_experiment(one, folder, metadata=pd.DataFrame({"modality": ["../x"]}, index=["a"]))
    with pytest.raises(InputError, match="differ in case"):
        ss.io.write_experiment({"a": _table(0), "A": _table(1)}, folder)
    with pytest.raises(InputError, match="is a dict"):
        ss.io.write_experiment({"a": {}}, folder)
    odd = _table(0)
    odd.uns["thing"] = object()
    with pytest.raises(InputError, match="cannot be written"):
        ss.io.write_experiment({"a": _table(1), "b": odd}, folder)
    assert list(folder.iterdir()) == []
    with pytest.raises(MissingError, match=r"no metadata\.tsv"):
        ss.io.read_experiment(folder)
    (folder / "metadata.tsv").write_text("name\nx\n")
    with pytest.raises(FormatError, match="no column 'sample'"):
        ss.io.read_experiment(folder)
    ss.io.write_experiment(one, tmp_path / "f")
    with pytest.raises(MissingError, match=r"no sample 'z'.*one of: a"):
        ss.io.read_experiment(tmp_path / "f", samples=["a", "z"])
    with pytest.raises(MissingError, match=r"no modality 'm'.*one of: expression"):
        ss.io.read_experiment(tmp_path / "f", modality="m")
