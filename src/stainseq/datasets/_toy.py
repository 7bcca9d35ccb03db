"""Toy slides with planted truth: an H&E-like picture whose morphology decides the expression.

Nothing is downloaded and nothing is read from disk. The law from morphology to expression is one and the same for
every seed, size and patient, so a model that is trained on one toy slide can be scored on another, against the
expected counts that are kept beside the noisy ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from .. import keys, spec
from ..errors import InputError

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

MPP = 0.8
"""Microns per pixel of the picture: not 1, so that a mix-up of pixels and microns shows."""

SPOT_UM = 55.0
DOMAINS = ("gland", "stroma", "immune")
KINDS = ("morphology", "hidden", "flat")

# Per domain: nuclei per 1,000 um2, nucleus radius (um), elongation, eosin density. Values are those of a breast
# section to the eye, far enough apart that colour and texture tell the domains.
_NUCLEI_PER_1000_UM2 = np.array([5.0, 2.2, 11.0])
_RADIUS_UM = np.array([4.2, 3.2, 2.9])
_ELONGATION = np.array([1.3, 2.6, 1.05])
_EOSIN = np.array([0.42, 0.62, 0.24])

_STAINS = np.array([[0.65, 0.70, 0.29], [0.21, 0.85, 0.48]])
"""Optical density of haematoxylin and eosin in R, G, B (eosin drawn a little towards pink)."""

_LAW_SEED = 20_260_101
_LAW_GENES = 2_000


@dataclass(frozen=True)
class _Size:
    px: int
    pitch_um: float
    genes: int


_SIZES = {"small": _Size(900, 70.0, 60), "medium": _Size(2400, 100.0, 200), "large": _Size(6000, 100.0, 1000)}


@dataclass
class _Tissue:
    """Truth maps at a quarter of the picture's resolution, and the picture."""

    rgb: NDArray[np.uint8]
    domain: NDArray[np.uint8]
    morphology: NDArray[np.float32]
    inside: NDArray[np.bool_]
    step_um: float


def toy_slide(
    *,
    size: Literal["small", "medium", "large"] = "small",
    seed: int = 0,
    slide: str | None = None,
    patient: str = "P1",
    tissue: str = "toy",
) -> SpatialData:
    """Make a slide with an H&E-like picture, hexagonal spots and counts that follow from the picture.

    Parameters
    ----------
    size
        "small": 900 px (720 um), about 100 spots, 60 genes; "medium": 2,400 px (1.9 mm), about 350 spots, 200 genes;
        "large": 6,000 px (4.8 mm), about 2,200 spots, 1,000 genes.
    seed
        Another seed is another section: other tissue, another staining, other noise; the same law.
    slide
        Name of the slide; default ``toy<seed>``.
    patient
        Name of the patient. Patients differ by a small shift of each gene's mean.
    tissue
        Name of the tissue, kept as a fact.

    Returns
    -------
    SpatialData
        Laid out as the slide store is:

        - ``he``: uint8, c y x, multiscale, 0.8 um per pixel.
        - ``spots``: circles of 55 um diameter, coordinates in um.
        - ``counts_spots``: int32 CSR counts. ``obs["truth"]``: domain of most of the spot (gland, stroma, immune).
          ``layers["rate"]``: float32, expected count. ``var["kind"]``: "morphology" (60 % of the genes; follows from
          the picture), "hidden" (20 %; spatial, but not to be seen in the picture), "flat" (20 %; a constant share of
          the depth).
          ``obs["array_row"]``, ``obs["array_col"]``: place on the hexagonal array, as in Visium.
          ``obsm["spatial"]``: centres, um.
        - ``attrs["stainseq"]``: the slide's facts.

    Raises
    ------
    InputError
        Unknown size.
    """
    chosen = _size(size)
    name = slide or f"toy{seed}"
    drawn = _draw(chosen, seed)
    table = _table(chosen, drawn, seed=seed, patient=patient)
    table.uns[keys.STAMP] = spec.stamp("toy_slide", parameters={"size": size, "seed": seed, "patient": patient})
    facts = {"slide": name, "patient": patient, "tissue": tissue, "platform": "toy", "mpp": MPP}
    return _spatialdata(drawn.rgb, table, facts)


def toy_table(*, size: Literal["small", "medium", "large"] = "small", seed: int = 0, patient: str = "P1") -> AnnData:
    """Give the table of `toy_slide` alone, for methods that need expression and coordinates only.

    Parameters
    ----------
    size, seed, patient
        As in `toy_slide`; the counts are the same.
    """
    chosen = _size(size)
    return _table(chosen, _draw(chosen, seed), seed=seed, patient=patient)


def _size(size: str) -> _Size:
    if size not in _SIZES:
        raise InputError(f"no toy slide of size {size!r}", fix=f"one of: {', '.join(_SIZES)}")
    return _SIZES[size]


# ---- the picture -----------------------------------------------------------------------------------------------


def _draw(size: _Size, seed: int) -> _Tissue:
    """Paint the section: domains, lumina, nuclei, fibres, then the stain."""
    import cv2

    px, quarter = size.px, size.px // 4
    step = MPP * px / quarter
    rng = np.random.default_rng([seed, 1])
    fields = np.stack([_smooth_noise(rng, quarter, 130.0 / step) for _ in DOMAINS])
    domain = (fields + np.array([0.15, 0.25, -0.15])[:, None, None]).argmax(0).astype(np.uint8)
    inside = _outline(rng, quarter)
    density = _NUCLEI_PER_1000_UM2[domain] * np.exp(0.35 * _smooth_noise(rng, quarter, 60.0 / step))
    eosin = _EOSIN[domain] * np.exp(0.15 * _smooth_noise(rng, quarter, 60.0 / step))
    eosin = cv2.GaussianBlur(eosin.astype(np.float32), (0, 0), 6.0 / step)

    lumen = _lumina(rng, domain, step)
    tissue = (inside & ~lumen).astype(np.float32)
    full = (px, px)
    pink = cv2.resize((eosin * tissue).astype(np.float32), full, interpolation=cv2.INTER_LINEAR)
    pink *= 1 + 0.18 * _fibres(rng, px)
    violet = _nuclei(rng, density * (tissue > 0), domain, step, px)
    violet *= cv2.resize(tissue, full, interpolation=cv2.INTER_LINEAR)

    area = (quarter, quarter)
    morphology = np.stack(
        [
            cv2.resize((violet > 0.3).astype(np.float32), area, interpolation=cv2.INTER_AREA),
            cv2.resize(pink, area, interpolation=cv2.INTER_AREA),
            (domain == 0).astype(np.float32),
            lumen.astype(np.float32),
        ]
    ).astype(np.float32)
    return _Tissue(_stain(violet, pink, seed), domain, morphology, inside, step)


def _smooth_noise(rng: np.random.Generator, n: int, sigma: float) -> NDArray[np.float32]:
    """Standard normal field of n x n with correlation length sigma (pixels), made coarsely and enlarged."""
    import cv2

    coarse = max(8, int(np.ceil(4 * n / sigma)))
    noise = rng.standard_normal((coarse + 8, coarse + 8)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 4.0)[4:-4, 4:-4]
    smooth = (smooth - smooth.mean()) / smooth.std()
    return np.asarray(cv2.resize(smooth, (n, n), interpolation=cv2.INTER_CUBIC), dtype=np.float32)


def _outline(rng: np.random.Generator, n: int) -> NDArray[np.bool_]:
    """A section with a wavy edge that leaves a margin of bare glass."""
    y, x = np.mgrid[0:n, 0:n].astype(np.float32) / n - 0.5
    radius = np.maximum(np.abs(x), np.abs(y)) * 0.6 + np.hypot(x, y) * 0.4
    return radius < 0.475 + 0.02 * _smooth_noise(rng, n, n / 8)


def _lumina(rng: np.random.Generator, domain: NDArray[np.uint8], step: float) -> NDArray[np.bool_]:
    """Empty centres of glands: discs of 12 to 26 um in the gland domain, at least 70 um apart."""
    import cv2

    n = domain.shape[0]
    grid = np.arange(35.0, n * step, 78.0)
    centres = np.stack(np.meshgrid(grid, grid), -1).reshape(-1, 2) + rng.uniform(-14, 14, (grid.size**2, 2))
    radii = rng.uniform(12, 26, len(centres))
    deep = cv2.erode((domain == 0).astype(np.uint8), np.ones((int(24 / step) | 1,) * 2, np.uint8))
    mask = np.zeros((n, n), np.uint8)
    for (x, y), r in zip(centres / step, radii / step, strict=True):
        if 0 <= x < n and 0 <= y < n and deep[int(y), int(x)]:
            cv2.circle(mask, (round(x), round(y)), round(r), 1, -1)
    return mask.astype(bool)


def _fibres(rng: np.random.Generator, px: int) -> NDArray[np.float32]:
    """Streaks along the direction of the stroma's nuclei, as in collagen."""
    import cv2

    half = (px + 1) // 2
    noise = rng.standard_normal((half, half)).astype(np.float32)
    streaks = cv2.GaussianBlur(noise, (0, 0), sigmaX=9, sigmaY=0.9) + cv2.GaussianBlur(noise, (0, 0), 1.2) * 0.15
    turned = cv2.warpAffine(
        streaks, cv2.getRotationMatrix2D((half / 2, half / 2), -20, 1), (half, half), borderMode=cv2.BORDER_REFLECT
    )
    return np.asarray(cv2.resize(turned / turned.std(), (px, px)), dtype=np.float32)


def _nuclei(
    rng: np.random.Generator, density: NDArray[Any], domain: NDArray[np.uint8], step: float, px: int
) -> NDArray[np.float32]:
    """Haematoxylin density: ellipses on a thinned jittered lattice (so that they rarely overlap), then a soft edge."""
    import cv2

    pitch = 7.5
    grid = np.arange(pitch / 2, px * MPP, pitch)
    at = np.stack(np.meshgrid(grid, grid), -1).reshape(-1, 2)
    at = at + rng.uniform(-0.35 * pitch, 0.35 * pitch, at.shape)
    cell = np.clip((at / step).astype(int), 0, domain.shape[0] - 1)
    local, kind = density[cell[:, 1], cell[:, 0]], domain[cell[:, 1], cell[:, 0]]
    keep = rng.random(len(at)) < local * pitch**2 / 1000
    at, kind = at[keep], kind[keep]
    radius = _RADIUS_UM[kind] * np.exp(0.14 * rng.standard_normal(len(at)))
    stretch = np.sqrt(_ELONGATION[kind])
    axes = np.stack([radius * stretch, radius / stretch], 1)
    tilt = np.where(kind == 1, rng.normal(20, 18, len(at)), rng.uniform(0, 180, len(at)))
    dark = np.clip(rng.normal(0.85, 0.16, len(at)), 0.45, 1.3)

    canvas = np.zeros((px, px), np.float32)
    scale = 16 / MPP  # cv2 draws at 1/16 pixel with shift=4
    centres, halves = np.rint(at * scale).astype(int).tolist(), np.rint(axes * scale).astype(int).tolist()
    for c, a, t, d in zip(centres, halves, tilt.tolist(), dark.tolist(), strict=True):
        cv2.ellipse(canvas, c, a, t, 0, 360, d, -1, cv2.LINE_8, 4)
    return np.asarray(cv2.GaussianBlur(canvas, (0, 0), 0.9), dtype=np.float32)


def _stain(violet: NDArray[np.float32], pink: NDArray[np.float32], seed: int) -> NDArray[np.uint8]:
    """Beer-Lambert with the section's own stain vectors; row blocks keep memory low."""
    rng = np.random.default_rng([seed, 2])
    vectors = _STAINS + rng.normal(0, 0.035, (2, 3))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    strength = np.exp(rng.normal(0, 0.12, 2))
    stains = (vectors * strength[:, None]).astype(np.float32)
    rgb = np.empty((*violet.shape, 3), np.uint8)
    for top in range(0, len(rgb), 512):
        rows = slice(top, top + 512)
        od = violet[rows, :, None] * stains[0] + pink[rows, :, None] * stains[1] + np.float32(0.02)
        od += np.float32(0.018) * rng.standard_normal(od.shape, dtype=np.float32)
        rgb[rows] = np.clip(np.rint(255 * np.exp(-od)), 0, 255)
    return rgb


# ---- the counts ------------------------------------------------------------------------------------------------


def _law(n_genes: int) -> tuple[NDArray[Any], NDArray[Any], list[str]]:
    """Log mean, effects of the four morphological measures, and kind of each gene: the same for every slide."""
    rng = np.random.default_rng(_LAW_SEED)
    base = rng.normal(1.8, 0.9, _LAW_GENES)
    effects = rng.normal(0, 0.55, (_LAW_GENES, 4)) * (rng.random((_LAW_GENES, 4)) < 0.6)
    place = np.arange(_LAW_GENES) % 10
    effects[place >= 6] = 0
    base[place >= 8] += 1.0
    kind = np.where(place < 6, KINDS[0], np.where(place < 8, KINDS[1], KINDS[2]))
    return base[:n_genes], effects[:n_genes], kind[:n_genes].tolist()


def _lattice(size: _Size, drawn: _Tissue) -> tuple[NDArray[Any], NDArray[Any]]:
    """Centres (x, y in um) of the hexagonal spots on tissue and their (row, column), columns counted as in Visium."""
    extent = size.px * MPP
    rows = np.arange(int((extent - SPOT_UM) / (size.pitch_um * np.sqrt(3) / 2)) + 1)
    cols = np.arange(int((extent - SPOT_UM) / (size.pitch_um / 2)) + 1)
    array = np.stack(np.meshgrid(rows, cols, indexing="ij"), -1).reshape(-1, 2)
    array = array[(array.sum(1) % 2) == 0]
    xy = SPOT_UM / 2 + array[:, ::-1] * np.array([size.pitch_um / 2, size.pitch_um * np.sqrt(3) / 2])
    cell = np.clip((xy / drawn.step_um).astype(int), 0, len(drawn.inside) - 1)
    on = drawn.inside[cell[:, 1], cell[:, 0]]
    return xy[on], array[on]


def _under_spots(drawn: _Tissue, xy: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Mean morphology and commonest domain inside each spot's circle."""
    import cv2

    radius = SPOT_UM / 2 / drawn.step_um
    r = int(np.ceil(radius))
    y, x = np.mgrid[-r : r + 1, -r : r + 1]
    disc = (np.hypot(x, y) <= radius).astype(np.float32)
    disc /= disc.sum()
    cell = np.clip((xy / drawn.step_um).astype(int), 0, len(drawn.inside) - 1)
    shares = [(drawn.domain == k).astype(np.float32) for k in range(len(DOMAINS))]
    means = [
        cv2.filter2D(layer, -1, disc, borderType=cv2.BORDER_REFLECT)[cell[:, 1], cell[:, 0]]
        for layer in [*drawn.morphology, *shares]
    ]
    measured = np.stack(means, 1).astype(np.float64)
    return measured[:, :4], measured[:, 4:].argmax(1)


def _rates(
    size: _Size, drawn: _Tissue, xy: NDArray[Any], seed: int, patient: str
) -> tuple[NDArray[Any], NDArray[Any], list[str]]:
    """Expected counts, commonest domain of each spot, kind of each gene."""
    base, effects, kind = _law(size.genes)
    measured, domain = _under_spots(drawn, xy)
    # Fixed centres and widths: standardising by the slide would make the law depend on the slide.
    z = (measured - [0.18, 0.42, 0.35, 0.06]) / [0.09, 0.14, 0.4, 0.09]
    log_rate = base + np.clip(z, -2.5, 2.5) @ effects.T
    rng = np.random.default_rng([seed, 3])
    cell = np.clip((xy / drawn.step_um).astype(int), 0, len(drawn.inside) - 1)
    for g in np.flatnonzero(np.array(kind) == KINDS[1]):
        field = _smooth_noise(rng, len(drawn.inside), 120.0 / drawn.step_um)
        log_rate[:, g] += 0.6 * field[cell[:, 1], cell[:, 0]]
    person = np.random.default_rng([_LAW_SEED, *patient.encode()])
    log_rate += person.normal(0, 0.1, _LAW_GENES)[: size.genes]
    rate = np.exp(log_rate)
    # Each kind has a constant part of the depth: else the rise of one would show as a fall of the others.
    for name in KINDS:
        own = np.array(kind) == name
        rate[:, own] *= np.exp(base[own]).sum() / rate[:, own].sum(1, keepdims=True)
    depth = np.exp(rng.normal(0, 0.25, len(xy)))
    return rate * depth[:, None], domain, kind


def _table(size: _Size, drawn: _Tissue, *, seed: int, patient: str) -> AnnData:
    import pandas as pd
    from anndata import AnnData
    from scipy import sparse

    xy, array = _lattice(size, drawn)
    rate, domain, kind = _rates(size, drawn, xy, seed, patient)
    rng = np.random.default_rng([seed, 4])
    shape = 8.0  # gamma noise with coefficient of variation 0.35: what Poisson alone leaves out
    counts = rng.poisson(rate * rng.gamma(shape, 1 / shape, rate.shape)).astype(np.int32)
    ids = [f"{r}x{c}" for r, c in array.tolist()]
    obs = pd.DataFrame(
        {
            keys.REGION_KEY: pd.Categorical([keys.SPOTS] * len(ids)),
            keys.INSTANCE_KEY: ids,
            "array_row": array[:, 0],
            "array_col": array[:, 1],
            "truth": pd.Categorical([DOMAINS[k] for k in domain], categories=list(DOMAINS)),
        },
        index=ids,
    )
    prefix = {KINDS[0]: "MOR", KINDS[1]: "HID", KINDS[2]: "FLAT"}
    var = pd.DataFrame({"kind": pd.Categorical(kind)}, index=[f"{prefix[k]}{i:04d}" for i, k in enumerate(kind)])
    table = AnnData(sparse.csr_matrix(counts), obs=obs, var=var)
    table.layers["rate"] = rate.astype(np.float32)
    table.obsm[keys.SPATIAL] = xy.astype(np.float64)
    table.uns["spatialdata_attrs"] = {
        "region": keys.SPOTS,
        "region_key": keys.REGION_KEY,
        "instance_key": keys.INSTANCE_KEY,
    }
    return table


def _spatialdata(rgb: NDArray[np.uint8], table: AnnData, facts: dict[str, Any]) -> SpatialData:
    import geopandas as gpd
    from shapely import points
    from spatialdata import SpatialData
    from spatialdata.models import Image2DModel, ShapesModel, TableModel
    from spatialdata.transformations import Identity, Scale

    to_um = {"global": Identity(), keys.UM: Scale([MPP, MPP], axes=("x", "y"))}
    to_px = {keys.UM: Identity(), "global": Scale([1 / MPP, 1 / MPP], axes=("x", "y"))}
    image = Image2DModel.parse(
        rgb.transpose(2, 0, 1),
        dims=("c", "y", "x"),
        c_coords=["r", "g", "b"],
        scale_factors=[2, 2],
        transformations=to_um,
        chunks=(3, 512, 512),
    )
    circles = gpd.GeoDataFrame(
        {"radius": np.full(table.n_obs, SPOT_UM / 2)},
        geometry=points(np.asarray(table.obsm[keys.SPATIAL])),
        index=table.obs[keys.INSTANCE_KEY].to_numpy(),
    )
    spots = ShapesModel.parse(circles, transformations=to_px)
    sdata = SpatialData(
        images={keys.HE: image}, shapes={keys.SPOTS: spots}, tables={keys.counts(keys.SPOTS): TableModel.parse(table)}
    )
    sdata.attrs[keys.STAMP] = dict(facts)
    return sdata
