"""Small folders as vendors and authors lay them out, around one drawn section with known spots."""

from __future__ import annotations

import csv
import gzip
import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import sparse

GENES = ["ACTB", "ERBB2", "KRT5", "MALAT1", "SILENT", "ACTB"]
"""One name twice, one gene that is zero everywhere."""


def picture(height: int = 400, width: int = 360, *, seed: int = 0) -> np.ndarray:
    """An ellipse of textured pink on white, uint8 [h, w, 3]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    tissue = ((y - height * 0.5) / (height * 0.36)) ** 2 + ((x - width * 0.5) / (width * 0.36)) ** 2 < 1
    rgb = np.full((height, width, 3), 243, dtype=np.uint8)
    colour = np.array([196, 120, 170]) + rng.integers(-25, 25, (height, width, 1))
    rgb[tissue] = np.clip(colour, 0, 255).astype(np.uint8)[tissue]
    return rgb


def counts(n: int, *, seed: int = 0) -> np.ndarray:
    """int [n, 6] counts."""
    values = np.random.default_rng(seed).poisson(2.0, (n, len(GENES)))
    values[:, GENES.index("SILENT")] = 0
    values[0, 0] = 100_000
    return values


def inside(xy: np.ndarray, height: int, width: int) -> np.ndarray:
    """Which points lie on the drawn tissue, a little inside its edge."""
    d = ((xy[:, 1] - height * 0.5) / (height * 0.34)) ** 2 + ((xy[:, 0] - width * 0.5) / (width * 0.34)) ** 2
    return d < 1


@dataclass
class Truth:
    """What a reader must find."""

    path: Path
    ids: list[str]
    xy_px: np.ndarray
    counts: np.ndarray
    mpp: float


def write_image(path: Path, rgb: np.ndarray, kind: str = "png") -> Path:
    """Write as png, jpeg or tiff whatever the suffix."""
    import imagecodecs
    import tifffile

    if kind == "tiff":
        tifffile.imwrite(path, rgb, photometric="rgb" if rgb.ndim == 3 else "minisblack")
    else:
        encode = {"png": imagecodecs.png_encode, "jpeg": lambda a: imagecodecs.jpeg8_encode(a, level=95)}[kind]
        path.write_bytes(encode(np.ascontiguousarray(rgb)))
    return path


def write_rows(path: Path, header: list[str], rows: list[list[object]], *, sep: str = "\t") -> Path:
    """Delimited text, gzip by suffix."""
    text = io.StringIO()
    writer = csv.writer(text, delimiter=sep, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    data = text.getvalue().encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def st(
    folder: Path,
    *,
    name: str = "S1",
    array: str = "1k",
    mpp: float = 6.25,
    drop_counts: int = 0,
    kind: str = "jpeg",
    header_corner: bool = True,
    fractions: bool = False,
) -> Truth:
    """A Spatial Transcriptomics folder as in her2st or STUtility.

    All places of the array are in the spot table; those on the drawn tissue are selected.
    """
    folder.mkdir(parents=True, exist_ok=True)
    size = (33, 35) if array == "1k" else (66, 63)
    step = np.array([200.0, 200.0] if array == "1k" else [100.26, 111.57])
    x, y = (v.ravel() for v in np.meshgrid(np.arange(1, size[0] + 1), np.arange(1, size[1] + 1)))
    if array == "2k":
        x, y = x[(x + y) % 2 == 0], y[(x + y) % 2 == 0]
    rng = np.random.default_rng(1)
    refined = np.column_stack([x, y]) + rng.normal(0, 0.04, (len(x), 2))
    height, width = int(38 * 200 / mpp), int(36 * 200 / mpp)
    xy = (refined + 0.7) * step / mpp
    selected = inside(xy, height, width)
    at = np.column_stack([x, y])[selected]
    shown = refined[selected] if fractions else at
    ids = [f"{a:.3f}x{b:.3f}" if fractions else f"{a}x{b}" for a, b in shown]
    values = counts(len(ids))
    order = np.random.default_rng(2).permutation(len(ids))[drop_counts:]
    write_rows(
        folder / f"{name}_counts.tsv.gz",
        ["", *GENES] if header_corner else GENES,
        [[ids[i], *values[i]] for i in order],
    )
    columns = [x, y, refined[:, 0].round(3), refined[:, 1].round(3), xy[:, 0].round(2), xy[:, 1].round(2), selected * 1]
    if fractions:
        columns[0], columns[1] = columns[2], columns[3]
    rows = [[c[i] for c in columns] for i in range(len(x))]
    write_rows(folder / f"{name}_selection.tsv", ["x", "y", "new_x", "new_y", "pixel_x", "pixel_y", "selected"], rows)
    write_image(folder / f"{name}_HE.jpg", picture(height, width), kind)
    kept = np.sort(order)
    return Truth(folder, [ids[i] for i in kept], xy[selected][kept], values[kept], mpp)


def stimage(
    root: Path,
    *,
    slide: str = "Human_Breast_Someone_01022020_ST_A1",
    flat: bool = False,
    kind: str = "jpeg",
    image: np.ndarray | None = None,
    mpp: float = 6.25,
    pitch_r: float = 0.25,
) -> Truth:
    """A slide in the layout of STimage-1K4M, in tree or flat form; technology by the slide's id."""
    tech = "VisiumHD" if "HD" in slide else "Visium" if "Visium" in slide else "ST"
    height, width = int(38 * 200 / mpp), int(36 * 200 / mpp)
    if tech == "ST":
        x, y = (v.ravel() for v in np.meshgrid(np.arange(1, 34), np.arange(1, 36)))
        xy, names, pitch = (
            np.column_stack([x + 0.7, y + 0.7]) * 200 / mpp,
            [f"{a}x{b}" for a, b in zip(x, y, strict=True)],
            200,
        )
    else:
        rows, cols, names = _visium_lattice()
        xy, pitch = np.column_stack([cols * 50.0 + 500, rows * 87.0 + 400]) / mpp, 100
    xy = xy + np.random.default_rng(4).normal(0, 0.05, xy.shape)
    keep = inside(xy, height, width)
    xy, ids = xy[keep], [f"{slide}_{n}" for n, k in zip(names, keep, strict=True) if k]
    places = {"image": root, "coord": root, "gene_exp": root}
    if not flat:
        places = {k: root / tech / k for k in places}
    for place in places.values():
        place.mkdir(parents=True, exist_ok=True)
    r = pitch_r * pitch / mpp
    write_rows(
        places["coord"] / f"{slide}_coord.csv",
        ["", "yaxis", "xaxis", "r"],
        [[i, p[1], p[0], r] for i, p in zip(ids, xy, strict=True)],
        sep=",",
    )
    values = counts(len(ids))
    order = np.random.default_rng(5).permutation(len(ids))
    write_rows(places["gene_exp"] / f"{slide}_count.csv", ["", *GENES], [[ids[i], *values[i]] for i in order], sep=",")
    write_image(places["image"] / f"{slide}.png", picture(height, width) if image is None else image, kind)
    return Truth(places["coord"] / f"{slide}_coord.csv", ids, xy, values, mpp)


def _visium_lattice() -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Rows, columns and barcodes of the 4,992 places."""
    rows = np.repeat(np.arange(78), 64)
    cols = np.tile(np.arange(64) * 2, 78) + rows % 2
    letters = np.array(list("ACGT"))
    codes = np.array([np.unravel_index(i, (4,) * 8) for i in range(len(rows))])
    return rows, cols, ["".join(letters[c]) + "AAAAAAAA-1" for c in codes]


def visium(
    folder: Path,
    *,
    version: int = 2,
    matrix: str = "h5",
    images: tuple[str, ...] = ("hires", "lowres"),
    kind: str = "filtered",
    mpp: float = 0.5,
    hires: float = 0.05,
    positions: str | None = None,
    antibodies: bool = False,
    cytassist: bool = False,
    prefix: str = "",
) -> Truth:
    """An ``outs`` folder of Space Ranger 1, 2 or 3."""
    spatial = folder / f"{prefix}spatial"
    spatial.mkdir(parents=True, exist_ok=True)
    rows, cols, barcodes = _visium_lattice()
    turn = np.radians(0.4)
    design = np.column_stack([cols * 50.0, rows * 87.0]) @ np.array(
        [[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]]
    )
    xy = design / mpp + 1200
    height, width = int(8000 / mpp), int(7600 / mpp)
    tissue = inside(xy, height, width)
    place = np.round(xy).astype(int) if version == 1 else xy
    parts = zip(barcodes, tissue, rows, cols, place.tolist(), strict=True)
    table = [[b, int(t), r, c, p[1], p[0]] for b, t, r, c, p in parts]
    _write_positions(spatial, table, positions or {1: "list.csv", 2: "csv", 3: "csv"}[version])
    scales = {
        "spot_diameter_fullres": 65.0 / mpp,
        "tissue_hires_scalef": hires,
        "fiducial_diameter_fullres": 105.0 / mpp,
        "tissue_lowres_scalef": hires * 0.3,
    }
    if cytassist:
        scales["regist_target_img_scalef"] = 0.2
        write_image(spatial / "cytassist_image.tiff", picture(60, 60), "tiff")
    (spatial / "scalefactors_json.json").write_text(json.dumps(scales))
    drawn = {"hires": hires, "lowres": hires * 0.3, "aligned_fiducials": hires}
    names = {
        "hires": "tissue_hires_image.png",
        "lowres": "tissue_lowres_image.png",
        "aligned_fiducials": "aligned_fiducials.jpg",
    }
    for name in images:
        write_image(spatial / names[name], picture(round(height * drawn[name]), round(width * drawn[name])))
    chosen = np.flatnonzero(tissue) if kind == "filtered" else np.arange(len(rows))
    values = counts(len(chosen))
    order = np.random.default_rng(6).permutation(len(chosen))
    features = [(f"ENSG{i:011d}", g, "Gene Expression") for i, g in enumerate(GENES)]
    if antibodies:
        features[2] = ("CD3", "CD3", "Antibody Capture")
    names = [barcodes[chosen[i]] for i in order]
    write = write_h5 if matrix == "h5" else write_mtx
    write(folder / f"{prefix}{kind}_feature_bc_matrix", values[order], names, features, version=version)
    on = tissue[chosen]
    return Truth(folder, [barcodes[i] for i in chosen[on]], place[chosen][on], values[on], mpp)


def _write_positions(spatial: Path, table: list[list[object]], form: str) -> None:
    import pandas as pd

    names = ["barcode", "in_tissue", "array_row", "array_col", "pxl_row_in_fullres", "pxl_col_in_fullres"]
    frame = pd.DataFrame(table, columns=names)
    if form == "parquet":
        frame.to_parquet(spatial / "tissue_positions.parquet", index=False)
    elif form.startswith("list."):
        frame.to_csv(spatial / f"tissue_positions_{form}", index=False, header=False)
    else:
        frame.to_csv(spatial / f"tissue_positions.{form}", index=False)


def write_h5(
    stem: Path, values: np.ndarray, barcodes: list[str], features: list[tuple[str, str, str]], *, version: int
) -> None:
    """10x HDF5, spots by genes in."""
    import h5py

    m = sparse.csr_matrix(values.astype(np.int32))
    with h5py.File(stem.with_name(stem.name + ".h5"), "w") as h5:
        h5.attrs["software_version"] = f"spaceranger-{version}.0.0"
        group = h5.create_group("matrix")
        group["barcodes"] = np.array(barcodes, dtype="S")
        group["shape"] = np.array(m.shape[::-1], dtype=np.int32)
        group["data"], group["indices"], group["indptr"] = m.data, m.indices.astype(np.int64), m.indptr.astype(np.int64)
        f = group.create_group("features")
        for name, k in (("id", 0), ("name", 1), ("feature_type", 2)):
            f[name] = np.array([row[k] for row in features], dtype="S")


def write_mtx(
    stem: Path, values: np.ndarray, barcodes: list[str], features: list[tuple[str, str, str]], *, version: int
) -> None:
    """10x matrix folder; version 1 without gzip."""
    from io import BytesIO

    from scipy.io import mmwrite

    stem.mkdir()
    buffer = BytesIO()
    mmwrite(buffer, sparse.csc_matrix(values.T.astype(np.int64)))
    texts = {
        "matrix.mtx": buffer.getvalue(),
        "barcodes.tsv": "".join(f"{b}\n" for b in barcodes).encode(),
        "features.tsv": "".join("\t".join(f) + "\n" for f in features).encode(),
    }
    for name, text in texts.items():
        if version == 1:
            (stem / name).write_bytes(text)
        else:
            (stem / f"{name}.gz").write_bytes(gzip.compress(text))
