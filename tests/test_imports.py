"""What an import and a help page may load: counted, not timed."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = {
    "numpy", "pandas", "scipy", "torch", "spatialdata", "anndata", "dask", "zarr", "matplotlib", "onnxruntime", "cv2",
    "sklearn", "numba", "geopandas", "shapely", "xarray", "h5py", "pyarrow", "tifffile", "jinja2", "PIL",
}  # fmt: skip

_TELL = "import json, sys; print('LOADED', json.dumps(sorted({m.split('.')[0] for m in sys.modules})))"


def _loaded(code: str) -> set[str]:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    line = next(line for line in done.stdout.splitlines() if line.startswith("LOADED"))
    return set(json.loads(line.removeprefix("LOADED ")))


def test_import_loads_nothing_heavy_and_little_else() -> None:
    loaded = _loaded(f"import stainseq; {_TELL}")
    assert not loaded & (HEAVY | {"cyclopts", "rich"})


def test_rooms_load_nothing_heavy() -> None:
    code = f"import stainseq as ss; ss.io, ss.pp, ss.tl, ss.pl, ss.settings, ss.__version__; {_TELL}"
    assert not _loaded(code) & (HEAVY - {"numpy"})


@pytest.mark.parametrize("argv", [["--help"], ["--version"], [], ["train", "--help"], ["svg", "--help"], ["nonsense"]])
def test_help_loads_nothing_heavy(argv: list[str]) -> None:
    loaded = _loaded(f"from stainseq.cli import run; run({argv!r}); {_TELL}")
    assert not loaded & HEAVY


def test_lists_load_no_plug_in() -> None:
    """A listing reads the files of the plug-ins; it never imports torch to say what needs torch."""
    for kind in ("heads", "readers", "domains", "svg", "writers", "encoders"):
        loaded = _loaded(f"from stainseq.cli import run; run(['list', {kind!r}]); {_TELL}")
        assert not loaded & (HEAVY - {"numpy"})


def test_every_promised_name_is_there() -> None:
    import stainseq as ss

    for room in (ss, ss.io, ss.pp, ss.tl, ss.pl, ss.datasets):
        for name in room.__all__:
            assert getattr(room, name) is not None
            assert name in dir(room)
