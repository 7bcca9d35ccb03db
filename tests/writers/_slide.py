"""Small slides in memory."""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, PointsModel, ShapesModel, TableModel
from spatialdata.transformations import Identity, Scale

from stainseq.regions.grid import as_element

GENES = ["EPCAM", "CD3E", "MS4A1", "COL1A1", "KRT8"]


def picture(height: int, width: int, mpp: float, seed: int = 0):
    pixels = np.random.default_rng(seed).integers(90, 250, (3, height, width), dtype=np.uint8)
    to = {"um": Scale([mpp, mpp], axes=("x", "y")), "global": Identity()}
    return Image2DModel.parse(pixels, dims=("c", "y", "x"), c_coords=["r", "g", "b"], transformations=to)


def table(region: str, ids: list[str], xy: np.ndarray, X, genes: list[str], **obs) -> AnnData:
    frame = pd.DataFrame(index=pd.Index(ids, dtype=object)).assign(**obs)
    frame["region"] = pd.Categorical([region] * len(ids))
    frame["instance_id"] = ids
    made = AnnData(X, obs=frame, var=pd.DataFrame(index=genes))
    made.obsm["spatial"] = np.asarray(xy, dtype=np.float64)
    return TableModel.parse(made, region=region, region_key="region", instance_key="instance_id")


def slide(
    *,
    height: int = 200,
    width: int = 240,
    mpp: float = 0.4,
    pitch_um: float = 8.0,
    share: float = 0.7,
    genes: list[str] | None = None,
    seed: int = 0,
    name: str = "P2",
    cells: bool = True,
) -> SpatialData:
    """Superpixels as `pp.superpixels` lays them (step and transformation by the same arithmetic)."""
    import geopandas as gpd
    import shapely

    rng = np.random.default_rng(seed)
    genes = GENES if genes is None else genes
    step = pitch_um / mpp
    shape = (int(np.ceil(height / step)), int(np.ceil(width / step)))
    row, col = np.nonzero(rng.random((height // int(np.ceil(step)), width // int(np.ceil(step)))) < share)
    if not len(row):
        row, col = np.array([0]), np.array([0])
    transform = np.diag([mpp, mpp, 1.0]) @ np.diag([step, step, 1.0])
    ids = [f"{r}_{c}" for r, c in zip(row, col, strict=True)]
    centres = np.column_stack([(col + 0.5) * transform[0, 0], (row + 0.5) * transform[1, 1]])
    counts = sparse.csr_matrix(rng.poisson(1.2, (len(ids), len(genes))).astype(np.int32))
    predicted = rng.gamma(2.0, 1.0, (len(ids), len(genes))).astype(np.float32)
    tables = {
        "counts_superpixels": table(
            "superpixels", ids, centres, counts, genes, filter_he_qc=rng.random(len(ids)) < 0.5
        ),
        "pred_ridge_superpixels": table("superpixels", ids, centres, predicted, genes),
    }
    tables["pred_ridge_superpixels"].layers["spread"] = predicted / 3
    points = {"superpixels": as_element(row, col, None, shape=shape, transform=transform)}
    shapes = {}
    if cells:
        at = rng.uniform(8, [width * mpp - 8, height * mpp - 8], (30, 2))
        names = [f"cell-{i}" for i in range(30)]
        frame = gpd.GeoDataFrame({"radius": np.full(30, 3.5)}, geometry=shapely.points(at), index=names)
        shapes["cells"] = ShapesModel.parse(frame, transformations={"um": Identity()})
        kinds = pd.Categorical(np.where(at[:, 0] > width * mpp / 2, "immune", "tumour"))
        area = rng.uniform(20, 90, 30)
        of_cells = sparse.csr_matrix(rng.poisson(2.0, (30, len(genes))).astype(np.int32))
        tables["counts_cells"] = table("cells", names, at, of_cells, genes, kind=kinds, area=area)
        tables["counts_cells"].obs["note"] = pd.Categorical([None, *["b"] * 29])
    n = 3000
    where = rng.uniform(-5, [width * mpp + 5, height * mpp + 5], (n, 2)).astype(np.float32)
    drawn = pd.DataFrame({"x": where[:, 0], "y": where[:, 1], "qv": rng.uniform(20, 40, n).astype(np.float32)})
    drawn["feature_name"] = pd.Categorical(rng.choice([*genes, "NegControlProbe_1"], n))
    drawn["cell_id"] = rng.choice(["a", "UNASSIGNED"], n)
    points["transcripts"] = PointsModel.parse(
        drawn, coordinates={"x": "x", "y": "y"}, feature_key="feature_name", transformations={"um": Identity()}
    )
    sdata = SpatialData(images={"he": picture(height, width, mpp, seed)}, points=points, shapes=shapes, tables=tables)
    sdata.attrs["stainseq"] = {"slide": name, "mpp": mpp, "platform": "toy"}
    return sdata


LABELS = ["T", "Macrophage", "Endothelial", "Keratinocyte", "few counts"]


def xenium_id(number: int) -> str:
    """As 10x spells it."""
    return "".join(chr(97 + (number >> s) % 16) for s in range(28, -1, -4)) + "-1"


def dataset(
    *,
    name: str = "D1",
    height: int = 700,
    width: int = 900,
    mpp: float = 0.25,
    n: int = 120,
    seed: int = 0,
    first: int = 0,
    xenium: bool = True,
    tissue: str = "Heart",
    overlap_px: int = 64,
    **facts: str,
) -> SpatialData:
    """A slide with nuclei as polygons, labels of them, and patches; some outlines are of the awkward kinds.

    Nucleus 0 crosses itself (a bow tie), 1 has two parts, 2 a hole, 3 lies over the picture's corner, 4 and 5 overlap.
    The right third has no nuclei.
    """
    import geopandas as gpd
    import shapely

    import stainseq as ss

    rng = np.random.default_rng(seed)
    at = rng.uniform([6, 6], [width * mpp * 0.6, height * mpp - 6], (n, 2))
    at[5] = at[4] + 2
    turn = np.linspace(0, 2 * np.pi, 13)[:-1]
    radius = rng.uniform(2.5, 4.5, (n, 1)) * (1 + 0.15 * rng.standard_normal((n, 12)))
    rings = at[:, None] + radius[..., None] * np.stack([np.cos(turn), np.sin(turn)], axis=1)
    outlines = list(shapely.polygons(rings))
    x, y = at[0]
    outlines[0] = shapely.Polygon([(x - 4, y - 3), (x + 4, y + 3), (x + 4, y - 3), (x - 4, y + 3)])
    outlines[1] = shapely.MultiPolygon([shapely.box(20, 60, 24, 64), shapely.box(27, 60, 30, 64)])
    outlines[2] = shapely.Polygon(shapely.box(40, 90, 48, 98).exterior, [shapely.box(42, 92, 46, 96).exterior.coords])
    outlines[3] = shapely.box(-3, -3, 4, 4)
    centres = shapely.get_coordinates(shapely.centroid(outlines))
    ids = [xenium_id(first + 10_000 * i) if xenium else f"n{first + i}" for i in range(n)]
    nuclei = gpd.GeoDataFrame({"cell_id": ids}, geometry=outlines, index=ids)
    kinds = pd.Categorical(rng.choice(LABELS, n), categories=LABELS)
    counts = sparse.csr_matrix(rng.poisson(1.5, (n, len(GENES))).astype(np.int32))
    made = table("nuclei", ids, centres, counts, GENES, **{"tangram.label": kinds})
    sdata = SpatialData(
        images={"he": picture(height, width, mpp, seed)},
        shapes={"nuclei": ShapesModel.parse(nuclei, transformations={"um": Identity()})},
        tables={"counts_nuclei": made},
    )
    sdata.attrs["stainseq"] = {"slide": name, "mpp": mpp, "tissue": tissue, "platform": "toy", **facts}
    ss.pp.patches(sdata, overlap_px=overlap_px)
    return sdata
