"""Tables as CSV, Parquet, AnnData and MuData against the table itself."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import anndata
import numpy as np
import pandas as pd
import pytest

import stainseq as ss
from stainseq import tables
from stainseq.errors import InputError, MissingError
from stainseq.writers import _table


def wide(path: Path) -> pd.DataFrame:
    if path.suffix == ".parquet":
        return pd.read_parquet(path)
    return pd.read_csv(path, sep="\t" if ".tsv" in path.suffixes else ",", float_precision="round_trip")


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.tsv", "a.parquet"])
@pytest.mark.parametrize("pieces", [False, True])
def test_wide(make: ModuleType, tmp_path: Path, name: str, pieces: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if pieces:
        monkeypatch.setattr(_table, "ROW_BYTES", 8 * 5 * 4)
    sdata = make.slide(genes=["EPCAM", "area", "MS4A1", "id_", "KRT8"])
    ss.io.export(sdata, tmp_path / name, to="parquet" if name.endswith("parquet") else "csv", table="counts_cells")
    got, table = wide(tmp_path / name), sdata["counts_cells"]
    assert list(got["id"]) == list(table.obs_names)
    assert set(got["slide"]) == {"P2"}
    # A gene may be called as a column of obs is, which then steps aside.
    np.testing.assert_array_equal(got["obs.area"], table.obs["area"])
    assert list(got["kind"]) == list(table.obs["kind"])
    assert got["note"].isna().tolist() == [True] + 29 * [False]
    columns = list(got.columns)
    assert columns[:4] == ["slide", "id", "x_um", "y_um"]
    np.testing.assert_array_equal(got[["x_um", "y_um"]].iloc[:, :2], table.obsm["spatial"])
    np.testing.assert_array_equal(got.iloc[:, -5:].to_numpy(), table.X.toarray())


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("to", ["csv", "parquet"])
def test_long(make: ModuleType, tmp_path: Path, to: str, zeros: bool) -> None:
    sdata = make.slide(cells=False)
    path = tmp_path / f"a.{to}"
    ss.io.export(sdata, path, to=to, table="counts_superpixels", layout="long", zeros=zeros, genes="KRT8,EPCAM")
    got, table = wide(path), sdata["counts_superpixels"]
    chosen = table[:, ["KRT8", "EPCAM"]].X.toarray()
    i, j = np.nonzero(np.ones_like(chosen) if zeros else chosen)
    assert list(got["id"]) == list(table.obs_names[i])
    assert list(got["gene"]) == [("KRT8", "EPCAM")[k] for k in j]
    assert list(got["value"]) == list(chosen[i, j])


@pytest.mark.filterwarnings("ignore:Variable names are not unique")
def test_layers_genes_and_facts(make: ModuleType, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    sdata = make.slide(cells=False)
    name = "pred_ridge_superpixels"
    ss.io.export(sdata, tmp_path / "a.parquet", to="parquet", table=name, layer="spread")
    got = pd.read_parquet(tmp_path / "a.parquet")
    np.testing.assert_array_equal(got[make.GENES].to_numpy(), sdata[name].layers["spread"])
    told = json.loads(pq.read_schema(tmp_path / "a.parquet").metadata[b"stainseq"])
    assert told["parameters"]["tables"] == [name]
    with pytest.raises(MissingError, match=r"no layer 'deep'.*spread"):
        ss.io.export(sdata, tmp_path / "b.csv", to="csv", table=name, layer="deep")
    with pytest.raises(MissingError, match="no gene NOPE"):
        ss.io.export(sdata, tmp_path / "b.csv", to="csv", table=name, genes=["EPCAM", "NOPE"])
    table = make.slide(cells=False, genes=["EPCAM", "x_um"])
    with pytest.raises(InputError, match="a gene called 'x_um'"):
        ss.io.export(table, tmp_path / "b.csv", to="csv", table=name)
    sdata.tables[name].var_names = ["A", "A", "B", "C", "D"]
    with pytest.raises(InputError, match="gene names that occur twice: A"):
        ss.io.export(sdata, tmp_path / "b.csv", to="csv", table=name)


def modalities(path: Path) -> set[str]:
    import h5py

    with h5py.File(path) as file:
        return set(file["mod"])


@pytest.mark.parametrize("lazy", [False, True])
def test_anndata_and_mudata_hold_everything(make: ModuleType, tmp_path: Path, lazy: bool) -> None:
    import dask.array as da

    sdata = make.slide()
    name = "pred_ridge_superpixels"
    want = sdata[name].copy()
    if lazy:
        sdata.tables[name].X = da.from_array(want.X, chunks=(10, 2))
    ss.io.export(sdata, tmp_path / "a.h5ad", to="h5ad", table=name)
    got = anndata.read_h5ad(tmp_path / "a.h5ad")
    np.testing.assert_array_equal(got.X, want.X)
    np.testing.assert_array_equal(got.layers["spread"], want.layers["spread"])
    np.testing.assert_array_equal(got.obsm["spatial"], want.obsm["spatial"])
    assert json.loads(got.uns["stainseq_export"])["step"] == "export"
    assert "stainseq_export" not in sdata[name].uns
    ss.io.export(sdata, tmp_path / "a.h5mu", to="h5mu")
    assert modalities(tmp_path / "a.h5mu") == {"counts_superpixels", name, "counts_cells"}
    np.testing.assert_array_equal(tables.open_path(tmp_path / "a.h5mu", modality=name).X, want.X)
    assert (tables.open_path(tmp_path / "a.h5mu" / "counts_cells").X != sdata["counts_cells"].X).nnz == 0
    ss.io.export(sdata, tmp_path / "b.h5mu", to="h5mu", region="superpixels")
    assert modalities(tmp_path / "b.h5mu") == {"counts_superpixels", name}


def test_files_of_tables_are_sources_too(make: ModuleType, tmp_path: Path) -> None:
    table = make.slide()["counts_cells"].copy()
    table.uns.clear()
    table.write_h5ad(tmp_path / "mine.h5ad")
    ss.io.export(tmp_path / "mine.h5ad", tmp_path / "a.csv", to="csv")
    got = wide(tmp_path / "a.csv")
    assert set(got["slide"]) == {"mine"}
    np.testing.assert_array_equal(got[make.GENES].to_numpy(), table.X.toarray())
    with pytest.raises(MissingError, match="no regions are named"):
        ss.io.export(tmp_path / "mine.h5ad", tmp_path / "b", to="superpixel")
    with pytest.raises(MissingError, match="no such file"):
        ss.io.export(tmp_path / "none.h5ad", tmp_path / "b.csv", to="csv")
