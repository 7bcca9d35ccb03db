"""Files of 10x Genomics as Space Ranger writes them, piece by piece: matrices, positions, feature slices."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from ..core import barcodes as core

CHUNK = 80_000
"""Values in a chunk of a matrix file, as the vendor writes them."""

_PACKED: dict[str, Any] = {"chunks": (CHUNK,), "compression": "gzip", "compression_opts": 4, "shuffle": True}


def barcodes(side_um: int, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
    """ "s_008um_00012_00345-1" and so on, bytes [n]."""
    text = core.write(side_um, rows, cols)
    return text.view(f"S{core.LENGTH}").ravel()


def coarsened(fine: Any, shape: tuple[int, int], factor: int) -> Any:
    """Sums over blocks of factor x factor bins; CSR [bins, genes], bins row by row on both sides.

    Rows and columns that fill no block are left out.
    """
    from scipy import sparse

    if factor == 1:
        return fine
    row, column = np.divmod(np.arange(shape[0] * shape[1]), shape[1])
    high, wide = shape[0] // factor, shape[1] // factor
    kept = np.flatnonzero((row // factor < high) & (column // factor < wide))
    target = row[kept] // factor * wide + column[kept] // factor
    ones = np.ones(len(kept), dtype=np.int32)
    join = sparse.coo_array((ones, (target, kept)), shape=(high * wide, shape[0] * shape[1])).tocsr()
    return sparse.csr_array(join @ fine)


def features(group: Any, genes: tuple[str, ...]) -> None:
    """The table of genes of a matrix or of feature slices."""
    columns = {
        "id": [f"ENSG{i:011d}" for i in range(len(genes))],
        "name": list(genes),
        "feature_type": ["Gene Expression"] * len(genes),
        "genome": ["GRCh38"] * len(genes),
    }
    for name, values in columns.items():
        group.create_dataset(name, data=np.array(values, dtype="S"), compression="gzip")
    group.create_dataset("_all_tag_keys", data=np.array(["genome"], dtype="S"))


class Matrix:
    """feature_barcode_matrix.h5, appended to.

    Parameters
    ----------
    path
        The file.
    genes
        Names.
    version
        Of Space Ranger.
    """

    def __init__(self, path: Path, genes: tuple[str, ...], *, version: str = "3.0.0") -> None:
        import h5py

        self._h5 = h5py.File(path, "w")
        self._genes = genes
        facts = {"filetype": "matrix", "version": np.int64(2), "software_version": f"spaceranger-{version}"}
        self._h5.attrs.update({**facts, "chemistry_description": "Visium HD v1"})
        group = self._h5.create_group("matrix")
        for name, kind in (("data", np.int32), ("indices", np.int64)):
            group.create_dataset(name, shape=(0,), maxshape=(None,), dtype=kind, **_PACKED)
        features(group.create_group("features"), genes)
        self._ends: list[np.ndarray] = [np.zeros(1, dtype=np.int64)]
        self._names: list[np.ndarray] = []

    def append(self, counts: Any, names: Any) -> None:
        """Add barcodes: CSR [n, genes] and n names."""
        group = self._h5["matrix"]
        for name, values in (("data", counts.data), ("indices", counts.indices)):
            old = group[name].shape[0]
            group[name].resize((old + len(values),))
            group[name][old:] = values
        self._ends.append(self._ends[-1][-1] + counts.indptr[1:].astype(np.int64))
        self._names.append(np.asarray(names, dtype="S"))

    def close(self) -> int:
        """Complete the file; returns the number of non-zeros."""
        group = self._h5["matrix"]
        names, ends = np.concatenate(self._names), np.concatenate(self._ends)
        group.create_dataset("barcodes", data=names, chunks=(min(CHUNK, max(1, len(names))),), compression="gzip")
        group.create_dataset("indptr", data=ends, chunks=(min(CHUNK, len(ends)),), compression="gzip")
        group.create_dataset("shape", data=np.array([len(self._genes), len(names)], dtype=np.int32))
        self._h5.close()
        return int(ends[-1])

    def __enter__(self) -> Matrix:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Positions:
    """tissue_positions.parquet and scalefactors_json.json of one bin size, appended to.

    Parameters
    ----------
    folder
        ``spatial``.
    side_um
        Side of a bin.
    to_px
        float [3, 3], microns of the array to full-resolution pixels.
    mpp
        Microns per full-resolution pixel.
    """

    def __init__(self, folder: Path, side_um: int, to_px: np.ndarray, mpp: float) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._side, self._to_px = side_um, to_px
        kinds = [("barcode", pa.string()), *((n, pa.int32()) for n in ("in_tissue", "array_row", "array_col"))]
        kinds += [("pxl_row_in_fullres", pa.float64()), ("pxl_col_in_fullres", pa.float64())]
        self._schema = pa.schema(kinds)
        self._writer = pq.ParquetWriter(folder / "tissue_positions.parquet", self._schema)
        scales = {"spot_diameter_fullres": side_um / mpp, "bin_size_um": float(side_um), "microns_per_pixel": mpp}
        scales |= {"regist_target_img_scalef": 0.25, "tissue_lowres_scalef": 0.025, "tissue_hires_scalef": 0.25}
        scales |= {"fiducial_diameter_fullres": 330 / mpp}
        (folder / "scalefactors_json.json").write_text(json.dumps(scales))

    def append(self, rows: np.ndarray, cols: np.ndarray, in_tissue: np.ndarray) -> None:
        """Add bins."""
        import pyarrow as pa

        from ..core import registration

        xy = registration.apply(self._to_px, np.column_stack([cols + 0.5, rows + 0.5]) * self._side)
        names = pa.array(barcodes(self._side, rows, cols)).cast(pa.string())
        values = [
            names,
            *(pa.array(np.asarray(v, dtype=np.int32)) for v in (in_tissue, rows, cols)),
            xy[:, 1],
            xy[:, 0],
        ]
        self._writer.write_table(pa.table(values, schema=self._schema))

    def close(self) -> None:
        """Complete the file."""
        self._writer.close()


def mappings(path: Path, rows: np.ndarray, cols: np.ndarray, cell: np.ndarray, nucleus: np.ndarray) -> None:
    """barcode_mappings.parquet of Space Ranger 4: the coarser bins and the cell of every bin of 2 um.

    Parameters
    ----------
    path
        The file.
    rows, cols
        int [n], bins of 2 um.
    cell
        int [n], 0 for none.
    nucleus
        bool [n].
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    named = {f"square_{s:03d}um": barcodes(s, rows * 2 // s, cols * 2 // s) for s in (2, 8, 16)}
    columns: dict[str, Any] = {name: pa.array(values).cast(pa.string()) for name, values in named.items()}
    columns["cell_id"] = pa.array([f"cellid_{c:09d}-1" if c else None for c in cell], type=pa.string())
    columns |= {"in_nucleus": pa.array(nucleus), "in_cell": pa.array(cell > 0)}
    pq.write_table(pa.table(columns), path)


def feature_slices(
    path: Path, fine: Any, shape: tuple[int, int], genes: tuple[str, ...], *, tissue: np.ndarray, to_px: np.ndarray
) -> None:
    """feature_slice.h5: one sparse picture of the bins of 2 um a gene, and which bins are under tissue.

    Parameters
    ----------
    path
        The file.
    fine
        CSR [bins of 2 um, genes], row by row.
    shape
        Rows and columns of the array.
    genes
        Names.
    tissue
        bool [rows, columns] of bins of 2 um.
    to_px
        float [3, 3], microns of the array to full-resolution pixels.
    """
    import h5py

    # The vendor's matrices map the index of a bin to the place of its centre.
    matrix = to_px @ np.array([[2.0, 0, 1], [0, 2, 1], [0, 0, 1]])
    back = np.linalg.inv(matrix)
    about: dict[str, Any] = {
        "sample_id": "generated",
        "sample_desc": None,
        "slide_name": "visium_hd_v1",
        "nrows": shape[0],
    }
    about |= {"ncols": shape[1], "spot_pitch": 2.0, "hd_layout_json": json.dumps({"file_format": "1.0"})}
    about["transform_matrices"] = {
        "spot_colrow_to_microscope_colrow": (matrix / matrix[2, 2]).tolist(),
        "microscope_colrow_to_spot_colrow": (back / back[2, 2]).tolist(),
    }
    with h5py.File(path, "w") as h5:
        h5.attrs.update({"filetype": "feature_slice", "version": "0.1.0", "metadata_json": json.dumps(about)})
        features(h5.create_group("features"), genes)
        h5.create_group("feature_slices")
        by_gene = fine.tocsc()
        for gene in range(len(genes)):
            mine = slice(*by_gene.indptr[gene : gene + 2])
            if mine.stop > mine.start:
                _coo(h5, f"feature_slices/{gene}", by_gene.indices[mine], by_gene.data[mine], shape[1])
        total = np.asarray(fine.sum(axis=1)).ravel()
        _coo(h5, "umis/total", np.flatnonzero(total), total[total > 0], shape[1])
        covered = np.flatnonzero(tissue.ravel())
        _coo(h5, "masks/filtered", covered, np.ones(len(covered), dtype=np.int64), shape[1], kind="binary_mask")


def _coo(h5: Any, name: str, at: np.ndarray, values: np.ndarray, columns: int, *, kind: str = "raw_counts") -> None:
    group = h5.create_group(name)
    domain = "all_spots" if kind == "raw_counts" else "filtered_spots"
    group.attrs["metadata_json"] = json.dumps({"kind": kind, "domain": domain, "binning_scale": 1})
    for key, part in (("row", at // columns), ("col", at % columns), ("data", values)):
        part = np.asarray(part, dtype=np.int64)
        packed = {**_PACKED, "chunks": (min(CHUNK, max(1, len(part))),)}
        group.create_dataset(key, data=part, maxshape=(None,), **packed)
