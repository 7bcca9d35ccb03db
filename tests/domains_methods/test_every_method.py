"""What every domain method promises: exactly K, the same answer for shuffled rows and any threads, clear refusals."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from scipy import sparse

from stainseq import registry
from stainseq.core.clusters import adjusted_rand, stability
from stainseq.core.normalize import log1p_cp10k
from stainseq.core.refine import refine
from stainseq.errors import InputError

QUICK = {"deepst": {"pre_epochs": 15, "epochs": 15}, "spagcn": {"epochs": 30}}
METHODS = [row["name"] for row in registry.describe("domains") if row["available"]]


def run(name, counts, xy, k, **options):
    module = registry.load("domains", name)
    X = counts if getattr(module, "WANTS", "lognorm") == "counts" else log1p_cp10k(counts)
    return module.assign(X, coordinates=xy, n_domains=k, **{**QUICK.get(name, {}), **options})


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("k", [1, 2, 9, 40])
def test_exactly_k_before_and_after_refinement(cells, name, k):
    data = cells(160)
    labels, p, z, info = run(name, data.counts, data.coordinates, k)
    assert labels.dtype == np.int32
    assert p.dtype == np.float32
    assert np.array_equal(np.unique(labels), np.arange(k))
    assert (np.diff(np.bincount(labels)) <= 0).all()  # by falling size
    assert p.shape == (160, k)
    np.testing.assert_allclose(p.sum(axis=1), 1, atol=1e-5)
    assert (p[np.arange(160), labels] >= p.max(axis=1) - 1e-6).all()
    assert z is None or (len(z) == 160 and z.dtype == np.float32)
    assert info["n_domains"] == k
    for layout in ("hexagon", "square", "free"):
        assert len(np.unique(refine(labels, data.coordinates, layout=layout))) == k


@pytest.mark.parametrize("name", METHODS)
def test_order_of_rows_does_not_matter(cells, name):
    data = cells(300)
    shuffle = np.random.default_rng(3).permutation(300)
    a = run(name, data.counts, data.coordinates, 4)
    b = run(name, data.counts[shuffle], data.coordinates[shuffle], 4)
    np.testing.assert_array_equal(a[0][shuffle], b[0])
    np.testing.assert_array_equal(a[1][shuffle], b[1])
    c = run(name, sparse.csc_array(data.counts), data.coordinates, 4)
    np.testing.assert_array_equal(a[0], c[0])


def image_and_samples(data):
    """Vectors that follow the layers, and two samples that lie over each other."""
    n = len(data.layer)
    rng = np.random.default_rng(7)
    return {"image_features": np.eye(4)[data.layer % 4] + rng.normal(0, 0.5, (n, 4)), "samples": np.arange(n) % 2}


@pytest.mark.parametrize("name", METHODS)
def test_order_of_rows_does_not_matter_with_an_image_and_samples(cells, name):
    data = cells(240)
    more = image_and_samples(data)
    shuffle = np.random.default_rng(4).permutation(240)
    a = run(name, data.counts, data.coordinates, 4, **more)
    b = run(name, data.counts[shuffle], data.coordinates[shuffle], 4, **{k: v[shuffle] for k, v in more.items()})
    np.testing.assert_array_equal(a[0][shuffle], b[0])
    np.testing.assert_array_equal(a[1][shuffle], b[1])
    assert len(np.unique(a[0])) == 4


@pytest.mark.parametrize("name", METHODS)
def test_a_seed_says_all(cells, name):
    data = cells(300)
    labelings = [run(name, data.counts, data.coordinates, 4, seed=s)[0] for s in (5, 5, 6)]
    np.testing.assert_array_equal(labelings[0], labelings[1])
    assert adjusted_rand(labelings[0], labelings[1]) == 1
    assert -0.1 < stability(labelings) <= 1


@pytest.mark.parametrize("name", METHODS)
def test_awkward_tables(cells, name):
    data = cells(120)
    counts = data.counts.toarray()
    counts[:, 0] = 0  # a gene without counts
    counts[3] = 0  # a spot without counts
    xy = data.coordinates.copy()
    xy[10:14] = xy[10]  # duplicates
    labels, *_, info = run(name, sparse.csr_array(counts), xy, 3)
    assert len(np.unique(labels)) == 3
    assert info["duplicate_coordinates"] == 3


@pytest.mark.parametrize("name", METHODS)
def test_refusals(cells, name):
    data = cells(30)
    with pytest.raises(InputError, match="31 domains of 30 rows"):
        run(name, data.counts, data.coordinates, 31)
    with pytest.raises(InputError, match="0 domains"):
        run(name, data.counts, data.coordinates, 0)
    bad = data.counts.toarray()
    bad[2, 3] = np.nan
    module = registry.load("domains", name)
    with pytest.raises(InputError, match="NaN"):
        module.assign(bad, coordinates=data.coordinates, n_domains=2)
    lost = data.coordinates.copy()
    lost[0, 0] = np.nan
    with pytest.raises(InputError, match="coordinates"):
        run(name, data.counts, lost, 2)
    with pytest.raises(InputError, match="one place"):
        run(name, data.counts, np.ones((30, 2)), 2)
    with pytest.raises(InputError, match="image features"):
        run(name, data.counts, data.coordinates, 2, image_features=np.ones((29, 3)))
    with pytest.raises(InputError, match=r"no gene varies|every count is zero"):
        run(name, np.zeros((30, 4)), data.coordinates, 2)


SCRIPT = """
import hashlib, importlib.util, sys
sys.path.insert(0, sys.argv[1])
import numpy as np, conftest, test_every_method as t
data = conftest._cells(600, seed=8)
if "numba" in sys.modules:
    import numba
    numba.set_num_threads(min(int(sys.argv[2]), numba.config.NUMBA_NUM_THREADS))
for name, more in [(n, m) for n in t.METHODS for m in ({}, t.image_and_samples(data))]:
    labels, p, z, info = t.run(name, data.counts, data.coordinates, 4, **more)
    h = hashlib.sha256(labels.tobytes() + p.tobytes())
    if z is not None:
        h.update(z.tobytes())
    print(name, h.hexdigest())
"""


@pytest.mark.slow
def test_threads_do_not_matter():
    here = os.path.dirname(__file__)
    seen = []
    for threads in ("1", "2", "4"):
        names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "STAINSEQ_N_JOBS")
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, here, threads],
            env={**os.environ, **dict.fromkeys(names, threads)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        seen.append(done.stdout)
    assert seen[0] == seen[1] == seen[2]
    assert len(seen[0].splitlines()) == 2 * len(METHODS)


LIMITED = """
import resource, sys
sys.path.insert(0, sys.argv[1])
import conftest, test_every_method as t
data = conftest._cells(60_000, n_genes=30)
resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))  # a matrix n x n of float32 would take 14 GB
few = {"spagcn": {"epochs": 5}, "deepst": {"pre_epochs": 3, "epochs": 3}}
labels, *_ = t.run(sys.argv[2], data.counts, data.coordinates, 5, **few.get(sys.argv[2], {}))
assert len(set(labels.tolist())) == 5
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="address-space limits are Linux's")
@pytest.mark.parametrize("name", METHODS)
def test_memory_is_linear(name):
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, os.path.dirname(__file__), name], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
