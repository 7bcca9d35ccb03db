"""Elements of every kind, written, replaced, deleted; stamps and fingerprints."""

from __future__ import annotations

import json
import shutil
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import spatialdata
import zarr
from anndata.experimental import read_lazy
from spatialdata import SpatialData
from spatialdata.models import ShapesModel
from spatialdata.transformations import get_transformation

from stainseq import io, store
from stainseq.errors import InputError, MissingError, ScaleError, StoreError
from stainseq.store import metadata

NAMES = {
    "images": "he",
    "labels": "nuclei_labels",
    "points": "transcripts",
    "shapes": "spots",
    "tables": "counts_spots",
}
KINDS = list(NAMES)


pytestmark = pytest.mark.filterwarnings("ignore:The table is annotating")  # plain spatialdata, without the spots


def placed(element):
    found = get_transformation(element, get_all=True)
    return {name: t.to_affine_matrix(("x", "y"), ("x", "y")).tolist() for name, t in found.items()}


def same(a, b, kind):
    """Whether two elements hold the same, up to the order of points and pyramids."""
    if kind == "points":
        one, two = (e.compute().sort_values(["x", "y"]).reset_index(drop=True) for e in (a, b))
        columns = list(one.columns)
        assert columns == list(two.columns)
        for column in columns:
            left, right = one[column].astype(object), two[column].astype(object)
            assert (left.where(left.notna(), "-") == right.where(right.notna(), "-")).all()
        assert placed(a) == placed(b)
    elif kind == "tables":
        assert (a.X != b.X).nnz == 0
        assert a.X.dtype == b.X.dtype
        pd.testing.assert_frame_equal(a.obs, b.obs)
        pd.testing.assert_frame_equal(a.var, b.var)
        assert np.array_equal(a.obsm["spatial"], b.obsm["spatial"])
        assert a.uns["spatialdata_attrs"] == b.uns["spatialdata_attrs"]
    elif kind == "images":
        first = lambda e: e["scale0"]["image"] if hasattr(e, "children") else e  # noqa: E731
        assert np.array_equal(first(a).values, first(b).values)
        assert list(first(a).c.values) == list(first(b).c.values)
        assert placed(a) == placed(b)
    elif kind == "labels":
        assert np.array_equal(a.values, b.values)
        assert a.dtype == b.dtype
        assert placed(a) == placed(b)
    else:
        pd.testing.assert_frame_equal(pd.DataFrame(a), pd.DataFrame(b))
        assert placed(a) == placed(b)


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip_by_us_and_by_plain_spatialdata(stored, slide, kind):
    name = NAMES[kind]
    for opened in (stored, spatialdata.read_zarr(stored.path)):
        same(opened[name], slide[name], kind)


@pytest.mark.parametrize("kind", KINDS)
def test_replace(stored, kind, make_element):
    name, new = NAMES[kind], make_element(kind, 1)
    before = store.fingerprint_of(stored, name)
    store.write_element(
        stored, name, new, step="again", parameters={"k": [1, None]}, inputs={"he": "abc"}, more={"seed": 3}
    )
    for opened in (stored, store.open(stored.path), spatialdata.read_zarr(stored.path)):
        same(opened[name], new, kind)
    stamp = store.stamp_of(stored, name)
    assert stamp["step"] == "again"
    assert stamp["parameters"] == {"k": [1, None]}
    assert stamp["inputs"] == {"he": "abc"}
    assert stamp["seed"] == 3
    assert stamp["format_version"] == 1
    assert stamp["content"] == store.fingerprint_of(stored, name) != before
    assert store.stamp_of(store.open(stored.path), name) == stamp
    assert store.problems(stored.path) == []
    assert [p.name for p in stored.path.parent.iterdir()] == ["s.zarr"]


@pytest.mark.parametrize("kind", KINDS)
def test_fingerprint_is_of_the_content(stored, slide, kind, tmp_path, make_element):
    name = NAMES[kind]
    first = store.fingerprint_of(stored, name)
    assert len(first) == 32
    # Written twice, computed from memory, and computed from files that plain spatialdata wrote.
    store.write_element(stored, name, stored[name], step="other", parameters={"a": 1})
    assert store.fingerprint_of(stored, name) == first
    if kind != "images":  # ours has a pyramid, the element in memory has none
        assert store.fingerprint_of(slide, name) == first
    stored.write(tmp_path / "plain.zarr")
    plain = spatialdata.read_zarr(tmp_path / "plain.zarr")
    assert store.fingerprint_of(plain, name) == first
    # Another content, or another place, is another fingerprint.
    store.write_element(stored, name, make_element(kind, 1), step="x", parameters={})
    assert store.fingerprint_of(stored, name) != first


def test_fingerprint_does_not_depend_on_chunks(tmp_path, make_element):
    image = make_element("images")
    found = set()
    for i, chunks in enumerate([(3, 700, 610), (1, 64, 610), (3, 500, 77)]):
        slide = SpatialData(images={"he": image.chunk(dict(zip("cyx", chunks, strict=True)))})
        found.add(store.fingerprint_of(store.create(tmp_path / f"{i}.zarr", slide, step="x", parameters={}), "he"))
    assert len(found) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_delete_and_add_again(stored, kind, make_element):
    name = NAMES[kind]
    store.delete_element(stored, name)
    assert name not in stored
    assert name not in spatialdata.read_zarr(stored.path)
    assert not (stored.path / kind / name).exists()
    assert store.problems(stored.path) == []
    with pytest.raises(MissingError, match=f"no element named '{name}'"):
        store.delete_element(stored, name)
    store.write_element(stored, name, make_element(kind), step="x", parameters={})
    assert name in spatialdata.read_zarr(stored.path)


@pytest.mark.parametrize("kind", KINDS)
def test_consolidated_metadata_is_that_of_zarr(stored, kind, make_element):
    """Ours is written in one step and by reading JSON only; it has to be what zarr would have written."""
    store.write_element(stored, NAMES[kind], make_element(kind, 1), step="x", parameters={})
    ours = json.loads((stored.path / "zarr.json").read_text())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        zarr.consolidate_metadata(stored.path)
    theirs = json.loads((stored.path / "zarr.json").read_text())
    assert ours["consolidated_metadata"] == theirs["consolidated_metadata"]
    assert ours == theirs


def test_a_lazy_table_from_the_store_itself(stored):
    lazy = read_lazy(zarr.open_group(stored.path / "tables" / "counts_spots", mode="r"))
    want = stored["counts_spots"].X.toarray()
    lazy.X = lazy.X * 2
    store.write_element(stored, "counts_spots", lazy, step="double", parameters={})
    assert np.array_equal(stored["counts_spots"].X.toarray(), 2 * want)
    table = store.open(stored.path)["counts_spots"]
    assert np.array_equal(table.X.toarray(), 2 * want)
    assert table.obs["n"].dtype == np.float64


def test_a_view_of_a_table(stored):
    view = stored["counts_spots"][:7]
    store.write_element(stored, "counts_spots", view, step="cut", parameters={})
    assert store.open(stored.path)["counts_spots"].n_obs == 7
    assert stored["counts_spots"].n_obs == 7


def test_a_lazy_image_from_the_element_it_replaces(stored):
    image = stored["he"]["scale0"]["image"]
    want = 255 - image.values
    store.write_element(stored, "he", 255 - image.assign_attrs(image.attrs), step="invert", parameters={})
    assert np.array_equal(stored["he"]["scale0"]["image"].values, want)


def test_stamp_of_a_table_travels_in_uns(stored, tmp_path):
    store.write_element(stored, "counts_spots", stored["counts_spots"], step="s", parameters={"a": [{"b": None}]})
    table = store.open(stored.path)["counts_spots"]
    table.write_h5ad(tmp_path / "t.h5ad")
    kept = ad.read_h5ad(tmp_path / "t.h5ad").uns["stainseq"]
    assert kept["step"] == "s"
    alone = SpatialData(tables={"counts_spots": ad.read_h5ad(tmp_path / "t.h5ad")})
    assert store.stamp_of(alone, "counts_spots") == store.stamp_of(stored, "counts_spots")


def test_without_a_path_only_the_object_changes(make_element, make_slide):
    slide = make_slide()
    for kind, name in NAMES.items():
        store.write_element(slide, name, make_element(kind, 1), step="x", parameters={})
        assert store.stamp_of(slide, name)["step"] == "x"
        assert len(store.fingerprint_of(slide, name)) == 32
        same(slide[name], make_element(kind, 1), kind)
    store.set_facts(slide, patient="P")
    assert store.facts(slide) == {"patient": "P"}
    store.delete_element(slide, "he")
    assert "he" not in slide


def test_facts(stored):
    store.set_facts(stored, patient="P1", mpp=0.5)
    for opened in (stored, store.open(stored.path), spatialdata.read_zarr(stored.path)):
        assert store.facts(opened) == {"slide": "S1", "patient": "P1", "mpp": 0.5}
    store.set_facts(stored, patient=None)
    assert "patient" not in store.facts(store.open(stored.path))
    assert store.problems(stored.path) == []


def test_steps(stored, make_element):
    store.write_element(stored, "tissue", make_element("shapes"), step="tissue", parameters={})
    steps = store.steps(stored)
    assert {s["element"] for s in steps} == {*NAMES.values(), "tissue"}
    assert {s["step"] for s in steps} == {"convert", "tissue"}
    assert [s["created"] for s in steps] == sorted(s["created"] for s in steps)


def test_names_and_elements_that_are_refused(stored, make_element):
    points = make_element("points")
    with pytest.raises(InputError, match="taken by images/he"):
        store.write_element(stored, "he", points, step="x", parameters={})
    with pytest.raises(InputError, match="taken by images/he"):
        store.write_element(stored, "HE", make_element("images"), step="x", parameters={})
    with pytest.raises(InputError, match="letters, digits"):
        store.write_element(stored, "a/b", points, step="x", parameters={})
    with pytest.raises(InputError, match="not an element"):
        store.write_element(stored, "new", np.zeros(3), step="x", parameters={})
    with pytest.raises(InputError, match="not an element"):
        store.write_element(stored, "new", pd.DataFrame({"x": [1]}), step="x", parameters={})
    assert store.problems(stored.path) == []
    # A name that another process gave to something else since this slide was opened.
    other = store.open(stored.path)
    store.write_element(other, "late", make_element("shapes"), step="x", parameters={})
    with pytest.raises(InputError, match="taken by shapes/late"):
        store.write_element(stored, "late", points, step="x", parameters={})


def test_what_anndata_cannot_store_is_an_input_error(stored, make_element):
    table = make_element("tables")
    table.uns["odd"] = object()
    with pytest.raises(InputError, match="cannot be stored"):
        store.write_element(stored, "counts_spots", table, step="x", parameters={})
    same(store.open(stored.path)["counts_spots"], make_element("tables"), "tables")


def test_empty_elements(stored, make_element):
    empty = make_element("points").partitions[0:1]
    empty = empty[empty["x"] < -1]
    empty.attrs = make_element("points").attrs
    store.write_element(stored, "transcripts", empty, step="x", parameters={})
    assert len(store.open(stored.path)["transcripts"]) == 0
    assert store.read_points_window(stored, "transcripts", (0, 0, 9, 9)).num_rows == 0


def test_create_refuses(tmp_path, slide, make_element):
    path = tmp_path / "a.zarr"
    store.create(path, slide, step="x", parameters={})
    with pytest.raises(StoreError, match="exists already"):
        store.create(path, slide, step="x", parameters={})
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "only copy.doc").write_text("hello")
    with pytest.raises(StoreError, match="not a slide store"):
        store.create(tmp_path / "thesis", slide, step="x", parameters={}, overwrite=True)
    assert (tmp_path / "thesis" / "only copy.doc").read_text() == "hello"
    with pytest.raises(StoreError, match="zip"):
        store.create(tmp_path / "a.zarr.zip", slide, step="x", parameters={})
    no_um = SpatialData(shapes={"s": ShapesModel.parse(make_element("shapes").drop(columns=[]), transformations={})})
    spatialdata.transformations.remove_transformation(no_um["s"], "um")
    spatialdata.transformations.set_transformation(no_um["s"], spatialdata.transformations.Identity(), "global")
    with pytest.raises(ScaleError, match="no element has a transformation to 'um'"):
        store.create(tmp_path / "b.zarr", no_um, step="x", parameters={})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.zarr", "thesis"]


def test_overwrite_with_what_comes_from_the_store_itself(stored, make_element):
    again = store.create(stored.path, store.open(stored.path), step="x", parameters={}, overwrite=True)
    assert {n for _, n, _ in again.gen_elements()} == set(NAMES.values())
    assert store.facts(again) == {"slide": "S1"}
    same(again["he"], make_element("images"), "images")


def test_parents_are_made_and_links_followed(tmp_path, slide, make_element):
    opened = store.create(tmp_path / "deep" / "er" / "a.zarr", slide, step="x", parameters={})
    (tmp_path / "link.zarr").symlink_to(opened.path)
    linked = store.open(tmp_path / "link.zarr")
    store.write_element(linked, "tissue", make_element("shapes"), step="x", parameters={})
    assert "tissue" in store.open(opened.path)
    assert (tmp_path / "link.zarr").is_symlink()


def test_a_newer_format_is_refused(stored):
    file = stored.path / "shapes" / "spots" / "zarr.json"
    content = json.loads(file.read_text())
    content["attributes"]["stainseq"] |= {"format_version": 2, "package_version": "9.1"}
    file.write_text(json.dumps(content))
    with pytest.raises(StoreError, match=r"'spots' was written in format 2 by stainseq 9.1.*upgrade"):
        store.open(stored.path)
    assert any("format 2" in p for p in store.problems(stored.path))


def test_plain_spatialdata_stores_open_and_take_elements(tmp_path, slide, make_element):
    slide.write(tmp_path / "plain.zarr")
    opened = store.open(tmp_path / "plain.zarr")
    assert store.stamp_of(opened, "he") is None
    assert store.facts(opened) == {}
    store.write_element(opened, "spots", make_element("shapes", 1), step="x", parameters={})
    assert store.stamp_of(opened, "spots")["step"] == "x"
    assert store.problems(tmp_path / "plain.zarr") == []


def test_not_a_store(tmp_path):
    with pytest.raises(StoreError, match="there is no store"):
        store.open(tmp_path / "none.zarr")
    (tmp_path / "empty.zarr").mkdir()
    with pytest.raises(StoreError, match="this is no slide store"):
        store.open(tmp_path / "empty.zarr")
    assert store.problems(tmp_path / "empty.zarr") == ["not a slide store"]
    (tmp_path / "file.zarr").write_text("hello")
    with pytest.raises(StoreError, match=r"file\.zarr"):
        store.open(tmp_path / "file.zarr")


def test_public_functions(tmp_path, slide):
    written = io.write(slide, tmp_path / "a.zarr", facts={"slide": "S"})
    assert store.facts(io.open(tmp_path / "a.zarr")) == {"slide": "S"}
    assert metadata.is_store(written.path)
    shutil.rmtree(written.path)
