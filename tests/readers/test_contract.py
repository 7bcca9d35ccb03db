"""What every reader must keep to: found by the registry, cheap and calm sniffing, one kind of result."""

from __future__ import annotations

import inspect
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from spatialdata.models import Image2DModel, ShapesModel, TableModel
from spatialdata.transformations import get_transformation

import stainseq as ss
from stainseq import registry
from stainseq.errors import FormatError, InputError

READERS = registry.names("readers")
OURS = ["st", "stimage", "visium", "wsi"]


@pytest.fixture(scope="module")
def sources(make: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, dict[str, Any]]]:
    """A small source for each of these readers, with the options it needs."""
    root = tmp_path_factory.mktemp("sources")
    make.st(root / "st")
    make.stimage(root / "stimage")
    make.visium(root / "visium")
    return {
        "st": (root / "st", {}),
        "stimage": (root / "stimage", {}),
        "visium": (root / "visium", {}),
        "wsi": (make.write_image(root / "slide.png", make.picture()), {"mpp": 0.5}),
    }


@pytest.mark.parametrize("name", READERS)
def test_shape_of_the_module(name: str) -> None:
    module = registry.load("readers", name)
    read = inspect.signature(module.read).parameters
    assert list(inspect.signature(module.sniff).parameters) == ["path"]
    assert next(iter(read)) == "path"
    assert all(p.kind is p.KEYWORD_ONLY for k, p in read.items() if k != "path")
    assert {"mpp", "facts"} <= set(read)
    assert isinstance(getattr(module, "PRIORITY", 0), int)
    assert (module.__doc__ or "").split("\n")[0].strip()


@pytest.mark.parametrize("name", READERS)
def test_sniffing_is_calm(tmp_path: Path, name: str) -> None:
    """Nothing there, an empty folder, noise, an empty file, broken JSON: None, never an error."""
    sniff = registry.load("readers", name).sniff
    rng = np.random.default_rng(0)
    (tmp_path / "empty").mkdir()
    (tmp_path / "spatial").mkdir()
    (tmp_path / "spatial" / "scalefactors_json.json").write_text("{")
    (tmp_path / "noise.tsv").write_bytes(rng.bytes(5000))
    (tmp_path / "noise.tsv.gz").write_bytes(b"\x1f\x8b" + rng.bytes(500))
    (tmp_path / "void.csv").write_bytes(b"")
    (tmp_path / "x_coord.csv").write_text("a,b\n")
    for path in (tmp_path, *tmp_path.iterdir(), tmp_path / "not" / "there", tmp_path / "prefix"):
        assert sniff(path) is None, path


@pytest.mark.parametrize("name", OURS)
def test_one_result_for_all(name: str, sources: dict[str, tuple[Path, dict[str, Any]]]) -> None:
    source, options = sources[name]
    claims = [n for n in READERS if registry.load("readers", n).sniff(source)]
    assert claims == [name]
    assert ss.io.sniff(source)[0] == name
    sdata = ss.io.read(source, slide=None, patient="P", tissue="T", **options)
    facts = sdata.attrs["stainseq"]
    assert facts["platform"] == name
    assert facts["patient"] == "P"
    assert facts["mpp"] > 0
    assert facts["mpp_from"] in ("array pitch", "--mpp")
    assert all(Path(p).is_file() for p in facts["files"].values())
    Image2DModel().validate(sdata["he"])
    assert sdata["he"].dims == ("c", "y", "x")
    assert sdata["he"].dtype == np.uint8
    assert "um" in get_transformation(sdata["he"], get_all=True)
    if name != "wsi":
        table = sdata["counts_spots"]
        ShapesModel.validate(sdata["spots"])
        TableModel().validate(table)
        assert table.X.format == "csr"
        assert table.X.dtype == np.int32
        assert table.obsm["spatial"].dtype == np.float64
        assert list(table.obs["region"].unique()) == ["spots"]
        assert list(sdata["spots"].index) == list(table.obs["instance_id"])
        assert table.uns["stainseq_read"]["notes"]


@pytest.mark.parametrize("name", OURS)
def test_options_are_checked(name: str, sources: dict[str, tuple[Path, dict[str, Any]]]) -> None:
    source, _ = sources[name]
    with pytest.raises(InputError, match="has no option nonsense"):
        ss.io.read(source, nonsense=1)
    with pytest.raises(InputError, match="give a number"):
        ss.io.read(source, mpp="half")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no pixel size"):
        ss.io.read(source, mpp=-0.5)


def test_a_folder_of_slides_names_them(tmp_path: Path, make: ModuleType) -> None:
    for name in ("A1", "B2"):
        make.st(tmp_path / name, name=name)
    (tmp_path / "notes").mkdir()
    with pytest.raises(FormatError, match=r"2 slides in it, not one, .*name one.*: A1 \(st\), B2 \(st\)$"):
        ss.io.sniff(tmp_path)
    with pytest.raises(FormatError, match=r"looked for .*st, .*wsi.*stainseq list readers"):
        ss.io.sniff(_text(tmp_path / "notes" / "a.txt").parent)


def _text(path: Path) -> Path:
    path.write_text("nothing that is known")
    return path
