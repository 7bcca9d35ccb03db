"""The torch part of the mlp head: an ensemble trained side by side as one batch of matrix products."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from .._settings import settings as machine

LOSSES = ("mse", "poisson", "nb")


class Data(NamedTuple):
    """What is learned from.

    Parameters
    ----------
    x
        float32 [n, p] inputs.
    y
        float32 [n, genes] standardised targets (loss "mse") or counts.
    offset
        float32 [n] log library size; zeros for "mse".
    start
        float32 [genes] output of an untrained network: 0 for "mse", else the log of the gene's share of all counts.
    scale
        float32 [genes] weight of each gene's loss.
    weights
        float32 [n] of the rows.
    """

    x: np.ndarray
    y: np.ndarray
    offset: np.ndarray
    start: np.ndarray
    scale: np.ndarray
    weights: np.ndarray


class Plan(NamedTuple):
    """How it is trained."""

    loss: str
    hidden: int
    dropout: float
    lr: float
    decay: float
    batch: int
    max_epochs: int
    patience: int
    seed: int


@contextmanager
def limit_threads(n: int = 1) -> Iterator[None]:
    """Sums are split over threads in another order for every number of threads; with one the order is fixed."""
    import torch
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        with threadpool_limits(n):
            yield
    finally:
        torch.set_num_threads(before)


class Ensemble:
    """Members with weights [members, in, out]: two layers with GELU and a linear path around them."""

    def __init__(self, plan: Plan, data: Data, members: list[int], device: str) -> None:
        import torch

        self.plan, self.device, self.n = plan, torch.device(device), len(members)
        p, g, h = data.x.shape[1], data.y.shape[1], plan.hidden
        first = np.empty((self.n, p, h), dtype=np.float32)
        second = np.empty((self.n, h, h), dtype=np.float32)
        for i, m in enumerate(members):
            rng = np.random.default_rng([plan.seed, m])
            first[i] = rng.normal(0, 1 / np.sqrt(p), (p, h))
            second[i] = rng.normal(0, 1 / np.sqrt(h), (h, h))
        values = {
            "w1": first,
            "b1": np.zeros((self.n, 1, h)),
            "w2": second,
            "b2": np.zeros((self.n, 1, h)),
            # Outputs start at the gene means, whatever the input.
            "w3": np.zeros((self.n, h, g)),
            "skip": np.zeros((self.n, p, g)),
            "b3": np.broadcast_to(data.start, (self.n, 1, g)),
            "dispersion": np.zeros((self.n, 1, g)),
        }
        self.values = {
            k: torch.tensor(np.ascontiguousarray(v), dtype=torch.float32, device=self.device).requires_grad_()
            for k, v in values.items()
        }
        decayed = [v for k, v in self.values.items() if k in ("w1", "w2", "w3", "skip")]
        others = [v for k, v in self.values.items() if k not in ("w1", "w2", "w3", "skip")]
        self.optimiser = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": plan.decay}, {"params": others, "weight_decay": 0.0}], lr=plan.lr
        )
        self.generator = torch.Generator(device=self.device).manual_seed(plan.seed)

    def forward(self, x: Any, *, train: bool = False) -> Any:
        """[members, b, p] -> [members, b, genes]."""
        import torch
        from torch.nn.functional import gelu

        v = self.values
        h = self._drop(gelu(torch.baddbmm(v["b1"], x, v["w1"])), train)
        h = self._drop(gelu(torch.baddbmm(v["b2"], h, v["w2"])), train)
        return torch.baddbmm(v["b3"], h, v["w3"]) + torch.bmm(x, v["skip"])

    def _drop(self, h: Any, train: bool) -> Any:
        import torch

        rate = self.plan.dropout
        if not train or rate == 0:
            return h
        keep = torch.rand(h.shape, generator=self.generator, device=self.device) >= rate
        return h * keep / (1 - rate)

    def loss(self, out: Any, y: Any, offset: Any, scale: Any, weights: Any) -> Any:
        """Mean loss of each member, [members]."""
        import torch

        if self.plan.loss == "mse":
            each = (out - y) ** 2
        else:
            log_mean = (out + offset[..., None]).clamp(-20, 20)
            if self.plan.loss == "poisson":
                each = log_mean.exp() - y * log_mean
            else:
                theta = torch.exp(self.values["dispersion"].clamp(-8, 8))
                both = torch.logaddexp(log_mean, torch.log(theta))
                each = (y + theta) * both - y * log_mean - theta * torch.log(theta)
                each = each - torch.lgamma(y + theta) + torch.lgamma(theta)
        return ((each * scale).mean(dim=2) * weights).mean(dim=1)

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Every member's output for all rows: float32 [members, n, genes]."""
        import torch

        parts = []
        with torch.no_grad():
            for start in range(0, len(x), 4096):
                block = torch.tensor(x[start : start + 4096], device=self.device).expand(self.n, -1, -1)
                parts.append(self.forward(block).cpu().numpy())
        return np.concatenate(parts, axis=1)

    def arrays(self) -> dict[str, np.ndarray]:
        """Weights as arrays."""
        return {k: v.detach().cpu().numpy() for k, v in self.values.items()}


class Trainer:
    """Runs epochs of an ensemble whose members each see their own rows."""

    def __init__(self, ensemble: Ensemble, data: Data, rows: list[np.ndarray], members: list[int]) -> None:
        import torch

        self.ensemble, self.rows = ensemble, rows
        self.rngs = [np.random.default_rng([ensemble.plan.seed, m, 1]) for m in members]
        device = ensemble.device
        self.x, self.y, self.offset, self.weights = (
            torch.tensor(a, device=device) for a in (data.x, data.y, data.offset, data.weights)
        )
        self.scale = torch.tensor(data.scale, device=device)

    def epoch(self) -> None:
        """One pass over the largest member's rows; smaller ones start over."""
        import torch

        batch = min(self.ensemble.plan.batch, max(len(r) for r in self.rows))
        steps = -(-max(len(r) for r in self.rows) // batch)
        order = np.stack(
            [np.resize(r[g.permutation(len(r))], steps * batch) for r, g in zip(self.rows, self.rngs, strict=True)]
        )
        for s in range(steps):
            take = torch.tensor(order[:, s * batch : (s + 1) * batch], device=self.x.device)
            out = self.ensemble.forward(self.x[take], train=True)
            loss = self.ensemble.loss(out, self.y[take], self.offset[take], self.scale, self.weights[take])
            self.ensemble.optimiser.zero_grad(set_to_none=True)
            loss.sum().backward()
            self.ensemble.optimiser.step()

    def held_out_loss(self, rows: list[np.ndarray]) -> float:
        """Mean loss over members, each on its own held-out rows."""
        import torch

        total, count = 0.0, 0
        with torch.no_grad():
            for m, own in enumerate(rows):
                for start in range(0, len(own), 4096):
                    take = torch.tensor(own[start : start + 4096], device=self.x.device)[None]
                    x = self.x[take].expand(self.ensemble.n, -1, -1)
                    out = self.ensemble.forward(x)
                    each = self.ensemble.loss(out, self.y[take], self.offset[take], self.scale, self.weights[take])
                    total += float(each[m]) * take.shape[1]
                    count += take.shape[1]
        return total / max(count, 1)


def find_epochs(plan: Plan, data: Data, folds: np.ndarray, device: str) -> tuple[int, np.ndarray]:
    """Epochs after which the held-out loss is lowest, and the held-out outputs there.

    Returns
    -------
    epochs : int
    outputs : float32 [n, genes]
        Output for each row of a network that has not seen the row's fold.
    """
    n_folds = int(folds.max()) + 1
    members = list(range(n_folds))
    train = [np.flatnonzero(folds != f) for f in members]
    test = [np.flatnonzero(folds == f) for f in members]
    ensemble = Ensemble(plan, data, members, device)
    trainer = Trainer(ensemble, data, train, members)
    # At least one epoch: where nothing beats the gene mean, a weak guess still ranks better than none.
    best, best_epoch, outputs = np.inf, 0, _held_out(ensemble, data.x, folds)
    for epoch in range(1, plan.max_epochs + 1):
        trainer.epoch()
        loss = trainer.held_out_loss(test)
        if loss < best:
            best, best_epoch, outputs = loss, epoch, _held_out(ensemble, data.x, folds)
        elif epoch - best_epoch >= plan.patience:
            break
    return best_epoch, outputs


def _held_out(ensemble: Ensemble, x: np.ndarray, folds: np.ndarray) -> np.ndarray:
    return np.take_along_axis(ensemble.predict(x), folds[None, :, None], axis=0)[0]


def train(plan: Plan, data: Data, members: int, epochs: int, device: str) -> Ensemble:
    """Members that differ in their start and batches, on all rows."""
    # Other seeds than those of `find_epochs`, whose members have chosen the number of epochs.
    numbers = [1000 + m for m in range(members)]
    ensemble = Ensemble(plan, data, numbers, device)
    trainer = Trainer(ensemble, data, [np.arange(len(data.x))] * members, numbers)
    for _ in range(epochs):
        trainer.epoch()
    return ensemble


def pick_device(device: str | None) -> str:
    """The device that is asked for, else that of the settings, else the best there is."""
    import torch

    device = device or machine.device
    if device != "auto":
        return device
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
