"""Every head keeps the contract of CONTRIBUTING.md; a new file in heads/ is tested here without being named."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
from scipy import sparse

from stainseq import registry
from stainseq.errors import FormatError, InputError
from stainseq.heads import _state

FAST = {
    "mlp": {"members": 2, "hidden": 16, "max_epochs": 8, "pca": 8, "patience": 3},
    "pixel2gene": {"epochs": 40, "lr": 3e-3, "batch": 30, "width": 32},
}
CONTEXT = ("ridge", "knn", "mlp")
CASES = [(name, FAST.get(name, {})) for name in registry.names("heads")]
CASES += [(name, {**FAST.get(name, {}), "context_k": 4}) for name in CONTEXT]
CASES += [(name, {**FAST.get(name, {}), "context_um": 150.0, "per_slide": True}) for name in CONTEXT]
CASES += [("ridge", {"denoise": kind}) for kind in ("spatial", "lowrank")]
CASES += [("ridge", {"criterion": "pearson"}), ("hest", {"pca": None}), ("knn", {"k": 3})]
CASES += [("mlp", {**FAST["mlp"], "loss": loss}) for loss in ("poisson", "nb")]
CASES += [("pixel2gene", {**FAST["pixel2gene"], "loss": loss}) for loss in ("nb", "mse")]
REFERENCE = ("pixel2gene", {"recipe": "reference", "epochs": 30, "lr": 3e-3, "batch": 30})
CASES += [REFERENCE]
heads = pytest.mark.parametrize(("name", "options"), CASES, ids=lambda v: v if isinstance(v, str) else str(list(v)))


class Set:
    """Three slides of planted expression on a square array."""

    def __init__(self, n=90, d=12, g=5, seed=0):
        rng = np.random.default_rng(seed)
        side = int(np.ceil(np.sqrt(n)))
        latent = rng.normal(size=(n, 3))
        self.X = (latent @ rng.normal(size=(3, d)) + 0.3 * rng.normal(size=(n, d))).astype(np.float32)
        rate = np.exp(0.6 * latent @ rng.normal(size=(3, g)) + 1)
        self.counts = rng.poisson(rate)
        self.library = self.counts.sum(1) + rng.poisson(400, n)
        self.Y = np.log1p(self.counts / self.library[:, None] * 1e4).astype(np.float32)
        self.xy = np.column_stack([np.arange(n) % side, np.arange(n) // side]) * 100.0
        self.slides = np.arange(n) // max(n // 3, 1) % 3

    def fit(self, module, rows=None, *, Y=None, counts=None, **options):
        take = np.arange(len(self.X)) if rows is None else rows
        Y = self.Y if Y is None else Y
        counts = self.counts if counts is None else counts
        given = {"coordinates": self.xy, "slides": self.slides, "groups": self.slides, "library": self.library}
        given = {k: v[take] for k, v in given.items()}
        return module.fit(self.X[take], Y[take], counts=sparse.csr_array(counts[take]), **given, **options)

    def predict(self, module, state, rows=None):
        take = np.arange(len(self.X)) if rows is None else rows
        return module.predict(state, self.X[take], coordinates=self.xy[take], slides=self.slides[take])


def _load(name):
    for need in getattr(registry.load("heads", name), "NEEDS", ()):
        pytest.importorskip(need)
    return registry.load("heads", name)


@heads
def test_shapes_dtypes_and_learning(name, options):
    module, data = _load(name), Set()
    mean, spread = data.predict(module, data.fit(module, **options))
    assert mean.shape == spread.shape == data.Y.shape
    assert mean.dtype == spread.dtype == np.float32
    assert np.isfinite(mean).all()
    assert (spread >= 0).all()
    if name not in ("mean", "hest"):
        r = [np.corrcoef(mean[:, j], data.Y[:, j])[0, 1] for j in range(5)]
        assert np.mean(r) > (0.15 if name == "mlp" else 0.4)


@heads
def test_state_survives_safetensors_and_has_a_config(name, options, tmp_path):
    from safetensors.numpy import load_file, save_file

    module, data = _load(name), Set()
    state = data.fit(module, **options)
    assert all(isinstance(v, np.ndarray) and v.flags["C_CONTIGUOUS"] for v in state.values())
    assert _state.config(state)["head"] == name
    save_file(state, tmp_path / "state.safetensors")
    for a, b in zip(
        data.predict(module, state), data.predict(module, load_file(tmp_path / "state.safetensors")), strict=True
    ):
        np.testing.assert_array_equal(a, b)


@heads
def test_same_seed_same_bits(name, options):
    module, data = _load(name), Set()
    a, b = (data.fit(module, seed=3, **options) for _ in range(2))
    assert set(a) == set(b)
    for key in a:
        np.testing.assert_array_equal(a[key], b[key])


@heads
def test_row_order_does_not_matter(name, options):
    module, data = _load(name), Set()
    order = np.random.default_rng(1).permutation(90)
    a, _ = data.predict(module, data.fit(module, **options))
    b, _ = data.predict(module, data.fit(module, order, **options))
    # Sums run in another order, and hest's lsqr stops at a tolerance.
    tolerance = 2e-2 if name == "hest" else 2e-3
    np.testing.assert_allclose(a, b, atol=tolerance)
    c, _ = data.predict(module, data.fit(module, **options), order)
    np.testing.assert_allclose(c, a[order], atol=1e-4)


@heads
def test_poisoned_held_out_labels_change_nothing(name, options):
    """Whatever is in the held-out rows' targets and counts, the model and its predictions are the same bits."""
    module, data = _load(name), Set()
    train = np.flatnonzero(data.slides != 2)
    poisoned, counts = data.Y.copy(), data.counts.copy()
    poisoned[data.slides == 2] = 1e6
    counts[data.slides == 2] = 12345
    clean = data.predict(module, data.fit(module, train, **options))
    dirty = data.predict(module, data.fit(module, train, Y=poisoned, counts=counts, **options))
    for a, b in zip(clean, dirty, strict=True):
        np.testing.assert_array_equal(a, b)


@heads
def test_inputs_are_left_alone(name, options):
    module, data, before = _load(name), Set(), Set()
    data.predict(module, data.fit(module, **options))
    for key in ("X", "Y", "counts", "library", "xy", "slides"):
        np.testing.assert_array_equal(getattr(data, key), getattr(before, key))


@heads
def test_separable_heads_fit_genes_in_parts(name, options):
    """Training relies on it: genes chosen with and without the held-out rows are then fitted in one go."""
    module, data = _load(name), Set()
    together = getattr(module, "TOGETHER", {})
    if not getattr(module, "SEPARABLE", False) or any(options.get(k) == v for k, v in together.items()):
        pytest.skip("genes are fitted together")
    whole, whole_spread = data.predict(module, data.fit(module, **options))
    part, part_spread = data.predict(module, data.fit(module, Y=data.Y[:, 1:3], counts=data.counts[:, 1:3], **options))
    np.testing.assert_allclose(part, whole[:, 1:3], atol=1e-5)
    np.testing.assert_allclose(part_spread, whole_spread[:, 1:3], atol=1e-5)


@heads
def test_one_gene_all_zero_gene_and_constant_feature(name, options):
    module, data = _load(name), Set()
    data.X[:, 4] = 0.1
    data.counts[:, 0] = 0
    data.Y[:, 0] = 0
    mean, spread = data.predict(module, data.fit(module, **options))
    assert np.isfinite(mean).all()
    assert np.isfinite(spread).all()
    np.testing.assert_allclose(mean[:, 0], 0, atol=2e-2)
    one = Set(g=1)
    mean, spread = one.predict(module, one.fit(module, **options))
    assert mean.shape == (90, 1)
    assert np.isfinite(mean).all()
    flat = Set()
    flat.X[:] = 7
    mean, _ = flat.predict(module, flat.fit(module, **options))
    assert np.isfinite(mean).all()
    # hest has no intercept; all neighbours are as near, and knn takes k; the reference's steps end where they do.
    if name not in ("hest", "knn") and "recipe" not in options:
        np.testing.assert_allclose(mean, np.broadcast_to(flat.Y.mean(0), mean.shape), atol=0.2)


@heads
@pytest.mark.parametrize("n", [1, 2, 3])
def test_very_few_rows_have_a_stated_result(name, options, n):
    module, data = _load(name), Set(n=n)
    state = data.fit(module, **options)
    mean, spread = data.predict(module, state)
    assert np.isfinite(mean).all()
    assert (np.isnan(spread) | (spread >= 0)).all()
    if n == 1 and name != "hest":
        np.testing.assert_allclose(mean, data.Y, atol=1e-2)
        assert np.isnan(spread).all()


@heads
def test_no_rows_to_predict(name, options):
    module, data = _load(name), Set()
    none = np.zeros(0, dtype=int)
    mean, spread = data.predict(module, data.fit(module, **options), none)
    assert mean.shape == spread.shape == (0, 5)


@pytest.mark.parametrize("name", registry.names("heads"))
def test_bad_input_is_named(name):
    module, data = _load(name), Set()
    options = FAST.get(name, {})
    holes = data.X.copy()
    holes[7, 3] = np.nan
    with pytest.raises(InputError, match="features of 1 of 90 rows hold NaN"):
        module.fit(holes, data.Y, **options)
    with pytest.raises(InputError, match="targets of 90 of 90 rows"):
        module.fit(data.X, np.full_like(data.Y, np.inf), **options)
    with pytest.raises(InputError, match="join both by id"):
        module.fit(data.X, data.Y[:-1], **options)
    with pytest.raises(InputError, match="nothing to learn"):
        module.fit(data.X[:0], data.Y[:0], **options)
    with pytest.raises(InputError, match="3 groups for 90 rows"):
        module.fit(data.X, data.Y, groups=np.zeros(3), **options)
    with pytest.raises(InputError, match="one inner fold"):
        module.fit(data.X, data.Y, folds=np.zeros(90), **options)
    if name != "hest":
        with pytest.raises(InputError, match="weights"):
            module.fit(data.X, data.Y, weights=-np.ones(90), **options)
    state = module.fit(data.X, data.Y, **options)
    with pytest.raises(InputError, match="11 features where the head was trained on 12"):
        module.predict(state, data.X[:, :11])
    with pytest.raises(InputError, match="hold NaN"):
        module.predict(state, holes)
    with pytest.raises(FormatError, match="not the state of a head"):
        module.predict({"coef": np.zeros(3)}, data.X)
    with pytest.raises(FormatError, match="of head"):
        module.predict(_state.pack("other", {}), data.X)


def test_a_newer_state_is_refused():
    state = _state.pack("ridge", {})
    text = bytes(state["_config"]).replace(b'"version":1', b'"version":9')
    with pytest.raises(FormatError, match="upgrade stainseq"):
        _state.config({"_config": np.frombuffer(text, np.uint8)})


@pytest.mark.parametrize("name", registry.names("heads"))
def test_signatures(name):
    module = _load(name)
    wanted = ["X", "Y", "counts", "library", "coordinates", "slides", "groups", "folds", "weights", "seed"]
    fit = inspect.signature(module.fit).parameters
    assert list(fit)[: len(wanted)] == wanted
    assert all(p.kind is p.KEYWORD_ONLY for k, p in fit.items() if k not in ("X", "Y"))
    assert list(inspect.signature(module.predict).parameters) == ["state", "X", "coordinates", "slides"]
    documented = inspect.getdoc(module.fit)
    assert all(option in documented for option in fit)


def test_weights_are_repeated_rows():
    data = Set()
    w = np.random.default_rng(0).integers(1, 4, 90)
    for name in ("mean", "ridge"):
        module = _load(name)
        folds = data.slides
        rows = np.repeat(np.arange(90), w)
        more = {"alphas": [100.0]} if name == "ridge" else {}
        a = module.fit(data.X, data.Y, folds=folds, weights=w, **more)
        # Weights have mean 1, so that the penalty keeps its meaning: repeated rows need it scaled.
        more = {"alphas": [100.0 * w.mean()]} if name == "ridge" else {}
        b = module.fit(data.X[rows], data.Y[rows], folds=folds[rows], **more)
        np.testing.assert_allclose(module.predict(a, data.X)[0], module.predict(b, data.X)[0], atol=1e-4)


def test_default_head_is_ridge():
    assert registry.default("heads") == "ridge"
