"""Text counts in blocks, gene names, 10x layouts of old."""

from __future__ import annotations

import gzip
from pathlib import Path

import anndata
import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from stainseq.errors import FormatError
from stainseq.readers import _tables


def test_blocks_do_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table read in pieces smaller than a line equals the table read whole."""
    values = np.random.default_rng(0).poisson(0.3, (40, 37))
    lines = [
        "," + ",".join(f"G{i}" for i in range(37)),
        *[f"s{i}," + ",".join(map(str, r)) for i, r in enumerate(values)],
    ]
    path = tmp_path / "a.csv"
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    for block in (1 << 22, 64, 7):
        monkeypatch.setattr(_tables, "BLOCK", block)
        got = _tables.read_text_counts(path)
        np.testing.assert_array_equal(got.X.toarray(), values)
        assert got.ids == [f"s{i}" for i in range(40)]
        assert got.X.dtype == np.int32


@given(st.lists(st.sampled_from(["A", "B", "A-1", "A-2", "C"]), max_size=12))
def test_unique_names(names: list[str]) -> None:
    got, changed = _tables.unique(names)
    assert len(set(got)) == len(names)
    assert changed == len(names) - len(set(names))
    firsts = {n: i for i, n in reversed(list(enumerate(names)))}
    assert all(got[i] == n for n, i in firsts.items())


def test_unique_names_as_anndata_makes_them() -> None:
    names = ["A", "A", "B", "A", "C", "B"]
    assert _tables.unique(names)[0] == list(anndata.utils.make_index_unique(__import__("pandas").Index(names)))


def test_ids() -> None:
    assert _tables.xy_of_id("16.92x9.015") == (16.92, 9.015)
    assert _tables.xy_of_id("Human_Breast_X_01012020_ST_A1_10x21") == (10, 21)
    assert _tables.xy_of_id("X7.9x14") == (7.9, 14)
    assert _tables.xy_of_id("ACGT-1") is None


def test_the_old_10x_layout(tmp_path: Path) -> None:
    values = sparse.csr_matrix(np.random.default_rng(0).poisson(1, (5, 3)).astype(np.int32))
    with h5py.File(tmp_path / "a.h5", "w") as h5:
        group = h5.create_group("GRCh38")
        group["barcodes"], group["genes"] = (
            np.array([f"b{i}" for i in range(5)], "S"),
            np.array(["e1", "e2", "e3"], "S"),
        )
        group["gene_names"], group["shape"] = np.array(["x", "y", "z"], "S"), [3, 5]
        group["data"], group["indices"], group["indptr"] = values.data, values.indices, values.indptr
    got = _tables.read_10x_h5(tmp_path / "a.h5")
    np.testing.assert_array_equal(got.X.toarray(), values.toarray())
    assert got.gene_ids == ["e1", "e2", "e3"]
    with h5py.File(tmp_path / "a.h5", "a") as h5:
        h5["GRCh38/indices"][0] = 9
    with pytest.raises(FormatError, match="do not fit together"):
        _tables.read_10x_h5(tmp_path / "a.h5")
