"""What data sets must hold, by plain means: shapely pixel by pixel, and readers that use nothing of ours."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import scipy.sparse as sp
import shapely

CT_1 = {"T": "T_NK", "Macrophage": "Myeloid", "Endothelial": "Blood_vessel", "Keratinocyte": "Epithelial"}
NINE = (
    "T_NK", "B_Plasma", "Myeloid", "Blood_vessel", "Fibroblast_Myofibroblast", "Epithelial", "Specialized",
    "Melanocyte", "Dead",
)  # fmt: skip


def decode(cell: str) -> int:
    return sum(16 ** (7 - i) * (ord(c) - ord("a")) for i, c in enumerate(cell[:8]))


def classes(sdata) -> np.ndarray:
    """Class number of each nucleus under ct_1: labels that the map does not name are Dead."""
    return np.array([NINE.index(CT_1.get(v, "Dead")) + 1 for v in sdata.tables["counts_nuclei"].obs["tangram.label"]])


def labels(sdata, shown=None) -> dict[str, np.ndarray]:
    """1 + number of the nucleus at each pixel of each patch; the later one lies above."""
    shapes = shapely.make_valid(sdata.shapes["nuclei"].geometry.to_numpy())
    out = {}
    for name, row in sdata.shapes["patches"].iterrows():
        x, y = np.meshgrid((row.x_px + np.arange(256) + 0.5) * 0.25, (row.y_px + np.arange(256) + 0.5) * 0.25)
        image = np.zeros((256, 256), dtype=np.int64)
        near = shapely.intersects(shapes, shapely.box(x.min(), y.min(), x.max(), y.max()))
        for i in np.flatnonzero(near if shown is None else near & shown):
            image[shapely.intersects_xy(shapes[i], x, y)] = i + 1
        out[name] = image
    return out


def contiguous(image: np.ndarray) -> np.ndarray:
    values = np.unique(image[image > 0])
    return np.where(image > 0, np.searchsorted(values, image) + 1, 0)


def members(path) -> list[str]:
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        return archive.namelist()


def stored(path) -> bool:
    with zipfile.ZipFile(path) as archive:
        return all(i.compress_type == zipfile.ZIP_STORED for i in archive.infolist())


def read(path, name: str) -> bytes:
    with zipfile.ZipFile(path) as archive:
        return archive.read(name)


def arrays(data: bytes) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(data)) as held:
        return dict(held)


def maps(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """inst_map and type_map of a labels .npz, as the loader of CellViT for STHELAR puts them together."""
    held = arrays(data)
    return tuple(
        sp.csr_matrix(
            (held[f"{k}_data"], held[f"{k}_indices"], held[f"{k}_indptr"]), shape=held[f"{k}_shape"]
        ).toarray()
        for k in ("inst_map", "type_map")
    )


def picture(data: bytes) -> np.ndarray:
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        assert (image.format, image.mode) == ("PNG", "RGB")
        return np.asarray(image)
