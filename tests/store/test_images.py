"""Images and labels stream: pyramid, chunks, metadata, memory."""

from __future__ import annotations

import json
import subprocess
import sys

import dask.array as da
import numpy as np
import pytest
import spatialdata
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, Image3DModel, Labels2DModel
from spatialdata.transformations import Affine, Identity, Scale, get_transformation

from stainseq import store
from stainseq.core.grids import halve
from stainseq.errors import InputError
from stainseq.store.images import pyramid_shapes

UM = {"um": Scale([0.5, 0.5], ("x", "y"))}


def write(tmp_path, name="he", **kinds):
    return store.create(tmp_path / "s.zarr", SpatialData(**kinds), step="x", parameters={}, overwrite=True)


@given(
    hnp.arrays(
        st.sampled_from(["u1", "u2", "i4", "f4"]),
        st.tuples(st.integers(1, 3), st.integers(2, 9), st.integers(2, 9)),
        elements=st.integers(0, 250),
    )
)
@settings(max_examples=60, deadline=None)
def test_halve_is_the_mean_rounded_half_up(image):
    h, w = image.shape[1] // 2, image.shape[2] // 2
    blocks = image[:, : 2 * h, : 2 * w].reshape(-1, h, 2, w, 2).astype(float).mean((2, 4))
    want = blocks if image.dtype.kind == "f" else np.floor(blocks + 0.5)
    assert np.array_equal(halve(image), want.astype(image.dtype))
    assert halve(image).dtype == image.dtype


def test_pyramid(tmp_path):
    values = np.random.default_rng(0).integers(0, 255, (3, 2100, 1333), dtype=np.uint8)
    image = Image2DModel.parse(da.from_array(values, chunks=(3, 500, 999)), dims=("c", "y", "x"), transformations=UM)
    opened = write(tmp_path, images={"he": image})
    levels = [opened["he"][f"scale{i}"]["image"] for i in range(3)]
    assert [level.shape for level in levels] == [(3, 2100, 1333), (3, 1050, 666), (3, 525, 333)]
    assert len(opened["he"].children) == 3  # 333 < 512
    assert np.array_equal(levels[0].values, values)
    assert np.array_equal(levels[1].values, halve(values))
    assert np.array_equal(levels[2].values, halve(halve(values)))
    assert pyramid_shapes(511, 9000) == [(511, 9000)]
    assert pyramid_shapes(512, 513) == [(512, 513), (256, 256)]


def test_metadata(tmp_path):
    image = Image2DModel.parse(
        np.ones((2, 1100, 1100), dtype=np.uint16),
        dims=("c", "y", "x"),
        c_coords=["dapi", "boundary"],
        transformations={
            "um": Affine([[0.3, 0.1, 5], [-0.1, 0.3, 7], [0, 0, 1]], ("x", "y"), ("x", "y")),
            "global": Identity(),
        },
    )
    opened = write(tmp_path, images={"morphology": image})
    plain = spatialdata.read_zarr(opened.path)["morphology"]
    assert plain["scale0"]["image"].dtype == np.uint16
    assert list(plain["scale0"].c.values) == ["dapi", "boundary"]
    for element in (plain, opened["morphology"]):
        matrix = get_transformation(element, "um").to_affine_matrix(("x", "y"), ("x", "y"))
        assert np.allclose(matrix, [[0.3, 0.1, 5], [-0.1, 0.3, 7], [0, 0, 1]])
        assert set(get_transformation(element, get_all=True)) == {"um", "global"}
    described = json.loads((opened.path / "images" / "morphology" / "zarr.json").read_text())["attributes"]["ome"]
    scales = [d["coordinateTransformations"][0]["scale"] for d in described["multiscales"][0]["datasets"]]
    assert scales == [[1, 1, 1], [1, 2, 2], [1, 4, 4]]
    assert [axis["name"] for axis in described["multiscales"][0]["axes"]] == ["c", "y", "x"]
    assert plain["scale0"]["image"].data.chunksize == (2, 512, 512)


def test_metadata_is_what_plain_spatialdata_writes(tmp_path):
    """A store that spatialdata wrote from the same levels has the same metadata, but for chunks and compression."""
    values = np.random.default_rng(0).integers(0, 255, (3, 1200, 1024), dtype=np.uint8)
    options = {"dims": ("c", "y", "x"), "c_coords": ["r", "g", "b"], "transformations": UM}
    opened = write(tmp_path, images={"he": Image2DModel.parse(values, **options)})
    SpatialData(images={"he": Image2DModel.parse(values, scale_factors=[2, 2], **options)}).write(tmp_path / "p.zarr")
    ours, theirs = (
        json.loads((p / "images" / "he" / "zarr.json").read_text()) for p in (opened.path, tmp_path / "p.zarr")
    )
    ours["attributes"].pop("stainseq")
    assert ours == theirs
    for level in ("s0", "s1", "s2"):
        ours, theirs = (
            json.loads((p / "images" / "he" / level / "zarr.json").read_text())
            for p in (opened.path, tmp_path / "p.zarr")
        )
        for key in ("chunk_grid", "codecs"):
            ours.pop(key), theirs.pop(key)
        assert ours == theirs


def test_given_levels_are_kept(tmp_path):
    """A vendor's pyramid is not made anew, also where its factors are not 2."""
    rng = np.random.default_rng(0)
    image = Image2DModel.parse(
        rng.integers(0, 255, (3, 1600, 1200), dtype=np.uint8),
        dims=("c", "y", "x"),
        scale_factors=[4, 4],
        transformations=UM,
    )
    image["scale1"]["image"] = image["scale1"]["image"] * 0 + np.uint8(7)
    opened = write(tmp_path, images={"he": image})
    assert [opened["he"][f"scale{i}"]["image"].shape for i in range(3)] == [
        (3, 1600, 1200),
        (3, 400, 300),
        (3, 100, 75),
    ]
    assert (opened["he"]["scale1"]["image"].values == 7).all()
    described = json.loads((opened.path / "images" / "he" / "zarr.json").read_text())["attributes"]["ome"]
    scales = [d["coordinateTransformations"][0]["scale"] for d in described["multiscales"][0]["datasets"]]
    assert scales == [[1, 1, 1], [1, 4, 4], [1, 16, 16]]


def test_labels_keep_their_values(tmp_path):
    values = np.random.default_rng(0).choice(np.array([0, 1, 70_000, 4_000_000_000], dtype=np.uint32), (1030, 1111))
    labels = Labels2DModel.parse(da.from_array(values, chunks=100), dims=("y", "x"), transformations=UM)
    opened = write(tmp_path, labels={"cells_labels": labels})
    assert np.array_equal(opened["cells_labels"]["scale0"]["image"].values, values)
    assert np.array_equal(opened["cells_labels"]["scale1"]["image"].values, values[:1030:2, :1110:2])
    described = json.loads((opened.path / "labels" / "zarr.json").read_text())
    assert described["attributes"]["ome"]["labels"] == ["cells_labels"]


def test_small_and_odd_rasters(tmp_path):
    for shape in ((3, 1, 1), (1, 1, 700), (4, 513, 2), (3, 512, 512)):
        values = np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8)
        opened = write(tmp_path, images={"he": Image2DModel.parse(values, dims=("c", "y", "x"), transformations=UM)})
        got = opened["he"]["scale0"]["image"] if hasattr(opened["he"], "children") else opened["he"]
        assert np.array_equal(got.values, values)


def test_rasters_that_are_refused(tmp_path):
    cube = Image3DModel.parse(np.zeros((1, 2, 8, 8), dtype=np.uint8), dims=("c", "z", "y", "x"), transformations=UM)
    with pytest.raises(InputError, match="c, y, x, not c, z, y, x"):
        write(tmp_path, images={"he": cube})


def test_the_same_bytes_whatever_the_chunks_and_threads(tmp_path, monkeypatch):
    from stainseq._settings import settings as machine

    values = np.random.default_rng(0).integers(0, 255, (3, 1300, 1700), dtype=np.uint8)
    found = []
    for i, (chunks, n_jobs) in enumerate([((3, 256, 256), 1), ((1, 1300, 300), 4), ((3, 700, 1700), 2)]):
        monkeypatch.setattr(machine, "n_jobs", n_jobs)
        image = Image2DModel.parse(da.from_array(values, chunks=chunks), dims=("c", "y", "x"), transformations=UM)
        opened = store.create(tmp_path / f"{i}.zarr", SpatialData(images={"he": image}), step="x", parameters={})
        folder = opened.path / "images" / "he"
        found.append(
            {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("c/**/*")) if f.is_file()}
        )
        assert len(found[-1]) == 3 * 4 + 2 * 2 + 1
    assert found[0] == found[1] == found[2]


BIG = """
import resource, sys
import dask.array as da, numpy as np
from spatialdata import SpatialData
from spatialdata.models import Image2DModel
from spatialdata.transformations import Identity
from stainseq import store

def block(block_info=None):
    (y0, y1), (x0, x1) = block_info[None]["array-location"][1:]
    squares = (np.arange(y0, y1)[:, None] // 64 + np.arange(x0, x1) // 64).astype(np.uint8)
    return np.broadcast_to(squares, (3, y1 - y0, x1 - x0))

side = int(sys.argv[2])
sizes = (1024,) * (side // 1024)
lazy = da.map_blocks(block, chunks=((3,), sizes, sizes), dtype=np.uint8)
image = Image2DModel.parse(lazy, dims=("c", "y", "x"), transformations={"um": Identity()})
store.create(sys.argv[1] + "/small.zarr", SpatialData(images={"he": image[:, :1024, :1024]}), step="x", parameters={})
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
opened = store.create(sys.argv[1] + "/big.zarr", SpatialData(images={"he": image}), step="x", parameters={})
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="measures memory as Linux counts it")
def test_a_large_image_is_never_whole_in_memory(tmp_path):
    """10,240 x 10,240 px are 315 MB; blocks of 64 MB at a time, one ahead, and what they become."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", BIG, str(tmp_path), "10240"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[-1]) < 280


def test_image_metadata_is_that_of_plain_spatialdata(tmp_path):
    """OME-Zarr attributes of images, labels and their groups, key for key; beside them our stamp alone."""
    rng = np.random.default_rng(0)
    image = Image2DModel.parse(rng.integers(0, 255, (3, 700, 600), dtype=np.uint8), transformations=UM)
    label = Labels2DModel.parse(rng.integers(0, 9, (700, 600)).astype(np.int32), transformations=UM)
    ours = write(tmp_path, images={"he": image}, labels={"nuclei_labels": label})
    SpatialData(images=dict(ours.images), labels=dict(ours.labels)).write(tmp_path / "plain.zarr")

    def attributes(store_name, group):
        found = json.loads((tmp_path / store_name / group / "zarr.json").read_text())["attributes"]
        return {k: v for k, v in found.items() if k != "stainseq"}

    for group in ("images", "images/he", "labels", "labels/nuclei_labels"):
        assert attributes("s.zarr", group) == attributes("plain.zarr", group)
    for array in ("images/he/s0", "images/he/s1", "labels/nuclei_labels/s1"):
        found = [json.loads((tmp_path / s / array / "zarr.json").read_text()) for s in ("s.zarr", "plain.zarr")]
        for key in ("shape", "data_type", "dimension_names", "chunk_key_encoding", "fill_value"):
            assert found[0][key] == found[1][key], (array, key)
