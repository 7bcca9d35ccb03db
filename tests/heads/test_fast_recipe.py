"""The fast recipe of pixel2gene: parts beside each other, what they may not see, several processes, half precision."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse
from scipy.stats import nbinom, poisson

from stainseq.errors import InputError
from stainseq.heads import _state, _trunk, pixel2gene

QUICK = {"width": 16, "epochs": 6, "batch": 64, "target": 1.0}


def _data(n: int = 400, d: int = 10, g: int = 4, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    side = int(np.ceil(np.sqrt(n)))
    X = rng.normal(size=(n, d)).astype(np.float32)
    rate = np.exp(0.5 * X[:, :3] @ rng.normal(size=(3, g)) + 0.3)
    counts = rng.poisson(rate)
    places = np.column_stack([np.arange(n) % side, np.arange(n) // side]) * 8.0
    return {"X": X, "counts": counts, "Y": np.log1p(counts).astype(np.float32), "places": places, "rate": rate}


def _fit(data, parts, *, counts=None, Y=None, **options):
    counts = data["counts"] if counts is None else counts
    return pixel2gene.fit_parts(
        data["X"], data["Y"] if Y is None else Y, parts, counts=sparse.csr_array(counts), library=np.ones(len(counts)),
        coordinates=data["places"], **{**QUICK, **options},
    )  # fmt: skip


@pytest.mark.parametrize("loss", ["poisson", "nb", "mse"])
def test_what_a_part_does_not_hold_changes_nothing_in_its_state(loss: str) -> None:
    data = _data()
    test = np.flatnonzero(data["places"][:, 0] < 40)
    parts = [np.setdiff1d(np.arange(400), test), np.arange(400)]
    counts, Y = data["counts"].copy(), data["Y"].copy()
    counts[test], Y[test] = 9999, 50.0
    clean, poisoned = _fit(data, parts, loss=loss), _fit(data, parts, counts=counts, Y=Y, loss=loss)
    for name in clean[0]:
        np.testing.assert_array_equal(clean[0][name], poisoned[0][name], err_msg=name)
    assert (clean[1]["bias_3"] != poisoned[1]["bias_3"]).any()


def test_a_part_is_what_it_is_alone() -> None:
    """Other parts beside it change the last digits of products at most."""
    data = _data()
    part = np.flatnonzero(data["places"][:, 1] < 100)
    together = _fit(data, [part, np.arange(400)], batch=400)
    alone = _fit(data, [np.arange(400)], batch=400)
    for name in ("weight_0", "weight_3", "bias_3", "line"):
        np.testing.assert_allclose(together[1][name], alone[0][name], atol=2e-5)


def test_half_precision_and_memory_maps_give_the_same_model(tmp_path: Path) -> None:
    data = _data()
    half = data["X"].astype(np.float16)
    np.save(tmp_path / "x.npy", half)
    mapped = {**data, "X": np.load(tmp_path / "x.npy", mmap_mode="r")}
    for name, value in _fit({**data, "X": half.astype(np.float32)}, None)[0].items():
        np.testing.assert_array_equal(_fit(mapped, None)[0][name], value)


def test_features_are_read_in_batches(tmp_path: Path) -> None:
    """A memory map is never there whole, in its own type or a wider one (numpy's memory is traced)."""
    import tracemalloc

    import torch  # noqa: F401  (not to be traced)

    n, d = 120_000, 64
    X = np.lib.format.open_memmap(tmp_path / "x.npy", mode="w+", dtype=np.float16, shape=(n, d))
    X[:] = np.random.default_rng(0).integers(-9, 9, (n, d), dtype=np.int8)
    counts = sparse.csr_array(np.random.default_rng(1).poisson(0.2, (n, 2)))
    places = np.column_stack([np.arange(n) % 300, np.arange(n) // 300]) * 8.0
    target = np.log1p(counts.toarray()).astype(np.float32)
    tracemalloc.start()
    try:
        pixel2gene.fit_parts(X, target, None, counts=counts, library=np.ones(n), coordinates=places,
                             **{**QUICK, "epochs": 1, "width": 4, "batch": 4096})  # fmt: skip
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < n * d * 4


def test_losses_are_likelihoods() -> None:
    import torch

    rng = np.random.default_rng(3)
    out, y, offset = rng.normal(size=(1, 30, 5)), rng.poisson(2.0, (30, 5)), rng.normal(size=30)
    one = np.ones((1, 5), dtype=np.float32)
    m = _trunk.Moments(np.zeros((1, 2), np.float32), np.ones((1, 2), np.float32), 0 * one, 0 * one, one)
    mean = np.exp(out[0] + offset[:, None])
    for loss in ("poisson", "nb"):
        plan = _trunk.Plan(loss, 4, 2, 0.0, 0.0, 1e-3, 0.0, 8, 1, 1, 0)
        net = _trunk.Networks(plan, m, "cpu")
        given = (torch.tensor(v, dtype=torch.float32) for v in (out, y, offset))
        ours = net.loss(*given).detach().numpy()[0]
        theirs = -(poisson.logpmf(y, mean) if loss == "poisson" else nbinom.logpmf(y, 1.0, 1 / (1 + mean)))
        from scipy.special import gammaln

        np.testing.assert_allclose(ours, (theirs - gammaln(y + 1.0)).mean(axis=1), rtol=2e-4, atol=1e-4)


def test_moments_are_those_of_the_part() -> None:
    data = _data()
    weights = np.random.default_rng(1).uniform(0, 2, (2, 400)).astype(np.float32)
    weights[0, :100] = 0
    given = _trunk.Data(data["X"], sparse.csr_array(data["counts"]), np.full(400, 0.7, np.float32), np.arange(400),
                        weights, np.zeros((2, 400), bool))  # fmt: skip
    found = _trunk.moments(given, "poisson")
    for k in range(2):
        w = weights[k].astype(float)
        mean = np.average(data["X"], axis=0, weights=w)
        np.testing.assert_allclose(found.mean[k], mean, atol=1e-5)
        sd = np.sqrt(np.average((data["X"] - mean) ** 2, axis=0, weights=w))
        np.testing.assert_allclose(found.gain[k], 1 / sd, rtol=1e-4)
        rate = w @ data["counts"] / (w.sum() * np.exp(0.7))
        np.testing.assert_allclose(found.start[k], np.log(rate), atol=1e-4)


def test_depth_is_divided_out() -> None:
    """Where a feature tells the depth alone, it is learned only if nobody says what the depth is."""
    data = _data(n=900)
    depth = np.exp(data["X"][:, 5])
    counts = np.random.default_rng(5).poisson(data["rate"] * depth[:, None])
    moved = []
    for library in (depth, np.ones(900)):
        Y = np.log1p(counts / library[:, None]).astype(np.float32)
        state = pixel2gene.fit_parts(
            data["X"], Y, None, counts=sparse.csr_array(counts), library=library, coordinates=data["places"],
            **{**QUICK, "epochs": 20, "width": 32},
        )[0]  # fmt: skip
        guess = pixel2gene.predict(state, data["X"])[0]
        moved.append(np.mean([np.corrcoef(g, data["X"][:, 5])[0, 1] for g in guess.T]))
    assert abs(moved[0]) < 0.2 < 0.5 < moved[1]


def test_it_stops_where_held_out_blocks_get_worse() -> None:
    rng = np.random.default_rng(0)
    data = _data()
    noise = rng.poisson(1.0, (400, 4))
    state = _fit(data, None, counts=noise, Y=np.log1p(noise).astype(np.float32), epochs=60, patience=3, width=64,
                 dropout=0.0, feature_dropout=0.0)[0]  # fmt: skip
    assert _state.config(state)["best_epoch"] < 55


def test_unknown_recipe_and_loss() -> None:
    data = _data(n=20)
    with pytest.raises(InputError, match="no recipe 'slow'"):
        pixel2gene.fit(data["X"], data["Y"], recipe="slow")
    with pytest.raises(InputError, match="no loss named 'l1'"):
        pixel2gene.fit(data["X"], data["Y"], loss="l1")
    for option in ({"dropout": 1.0}, {"layers": 0}, {"epochs": 0}, {"batch": -1}, {"target": 0.0}):
        with pytest.raises(InputError, match=f"{next(iter(option))} is .*give"):
            pixel2gene.fit(data["X"], data["Y"], **option)
    with pytest.raises(InputError, match="batch is 0"):
        pixel2gene.fit(data["X"], data["Y"], recipe="reference", batch=0)
    with pytest.raises(InputError, match=r"ran away.*lower lr"):
        pixel2gene.fit(data["X"], data["Y"], lr=1e6, epochs=3)
    with pytest.raises(InputError, match="negative"):
        pixel2gene.fit(data["X"], data["Y"], counts=-data["counts"], library=np.ones(20))


def test_two_processes_give_what_one_gives(tmp_path: Path) -> None:
    """Started as torchrun starts them, over gloo on the CPU."""
    script = tmp_path / "job.py"
    script.write_text(
        textwrap.dedent("""
        import os, sys
        import numpy as np
        from scipy import sparse
        from stainseq.heads import pixel2gene
        rng = np.random.default_rng(0)
        X = rng.normal(size=(300, 6)).astype(np.float32)
        counts = rng.poisson(np.exp(0.5 * X[:, :3]))
        parts = [np.arange(200), np.arange(300)]
        states = pixel2gene.fit_parts(
            X, np.log1p(counts).astype(np.float32), parts, counts=sparse.csr_array(counts), library=np.ones(300),
            target=1.0, width=8, epochs=4, batch=33, device="cpu",
        )
        found = {f"{k}{n}": v for k, s in enumerate(states) for n, v in s.items()}
        np.savez(sys.argv[1] + os.environ.get("RANK", ""), **found)
        """)
    )
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        env.pop(name, None)
    subprocess.run([sys.executable, str(script), str(tmp_path / "one")], check=True, env=env, timeout=300)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    subprocess.run([*launch, str(script), str(tmp_path / "two")], check=True, env=env, timeout=300, capture_output=True)
    one, first, second = (np.load(tmp_path / f"{n}.npz") for n in ("one", "two0", "two1"))
    for name in one:
        np.testing.assert_array_equal(first[name], second[name])
        np.testing.assert_allclose(first[name].astype(float), one[name].astype(float), atol=2e-4)
