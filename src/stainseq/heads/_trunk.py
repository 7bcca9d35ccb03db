"""The torch part of the fast recipe: networks of several training parts side by side, each batch read once for all."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ._features import CLIP, blocks
from ._ranks import Ranks

SLOPE = 0.1
LOSSES = ("poisson", "nb", "mse")
_WARM = 0.3
"""Share of the steps in which the step size rises (Smith and Topin 2019, arXiv:1708.07120)."""


class Plan(NamedTuple):
    """How it is trained."""

    loss: str
    width: int
    layers: int
    dropout: float
    feature_dropout: float
    lr: float
    decay: float
    batch: int
    epochs: int
    patience: int
    seed: int


class Data(NamedTuple):
    """What is learned from; every array is read in batches of rows.

    Parameters
    ----------
    X
        [n, p] of any float type, also a memory map.
    target
        float32 [n, genes] (loss "mse"), or CSR counts.
    offset
        float32 [n] log exposure; 0 for "mse".
    order
        int [n] rows in an order that depends on their content alone.
    weights
        float32 [parts, n]: 0 where a part's network must not look.
    held
        bool [parts, n]: what its stopping is decided on.
    """

    X: Any
    target: Any
    offset: np.ndarray
    order: np.ndarray
    weights: np.ndarray
    held: np.ndarray


class Moments(NamedTuple):
    """Per part: mean and reciprocal deviation of features [parts, p], start, centre and scale of genes [parts, genes].

    The reciprocal of a constant feature is 0. `start` is the output of an untrained network; `scale` divides (mse) or
    weighs (counts) a gene's loss.
    """

    mean: np.ndarray
    gain: np.ndarray
    start: np.ndarray
    centre: np.ndarray
    scale: np.ndarray


def dense(target: Any, rows: Any) -> np.ndarray:
    """Some rows of targets or counts, float32."""
    found = target[rows]
    return np.asarray(found if isinstance(found, np.ndarray) else found.toarray(), dtype=np.float32)


def moments(data: Data, loss: str) -> Moments:
    """One pass over the rows, in blocks: float32 products around a first guess, added up in float64."""
    w_all, n = data.weights, len(data.offset)
    guess = np.asarray(data.X[:1024], dtype=np.float32).mean(axis=0)
    parts, p, g = len(w_all), len(guess), data.target.shape[1]
    total, spent = np.maximum(w_all.sum(axis=1, dtype=np.float64), 1e-30), np.zeros(parts)
    x1, x2, y1, y2 = np.zeros((parts, p)), np.zeros((parts, p)), np.zeros((parts, g)), np.zeros((parts, g))
    for b in blocks(n, 4096):
        x, y, w = np.asarray(data.X[b], dtype=np.float32) - guess, dense(data.target, b), w_all[:, b]
        x1 += w @ x
        y1 += w @ y
        x *= x
        x2 += w @ x
        y2 += w @ (y * y)
        spent += w @ np.exp(data.offset[b])
    shift = x1 / total[:, None]
    mean = guess + shift
    sd = np.sqrt(np.maximum(x2 / total[:, None] - shift**2, 0))
    gain = np.divide(1, sd, out=np.zeros_like(sd), where=sd > 1e-6 * np.maximum(np.abs(mean), 1e-30))
    centre = y1 / total[:, None]
    if loss == "mse":
        off = np.sqrt(np.maximum(y2 / total[:, None] - centre**2, 0))
        start, scale = np.zeros_like(centre), np.where(off > 1e-6, off, 1)
    else:
        start = np.log((y1 + 1e-3) / np.maximum(spent, 1e-30)[:, None])
        # Errors of counts grow with the mean: without this the few most abundant genes would be all that is learned.
        scale = 1 / np.maximum(centre, 0.02)
    return Moments(*(v.astype(np.float32) for v in (mean, gain, start, centre, scale)))


class Networks:
    """One network a part, all of the same start: weights [parts, in, out]."""

    def __init__(self, plan: Plan, m: Moments, device: str) -> None:
        import torch

        self.plan, self.device = plan, torch.device(device)
        rng = np.random.default_rng([plan.seed, 0])
        k, p = m.mean.shape
        values: dict[str, np.ndarray] = {}
        for i, wide in enumerate([p, *[plan.width] * (plan.layers - 1)]):
            bound = 1 / np.sqrt(wide)
            values[f"weight_{i}"] = np.broadcast_to(
                rng.uniform(-bound, bound, (wide, plan.width)), (k, wide, plan.width)
            )
            values[f"bias_{i}"] = np.broadcast_to(rng.uniform(-bound, bound, plan.width), (k, 1, plan.width))
        # Outputs start at the gene means, whatever the input.
        values[f"weight_{plan.layers}"] = np.zeros((k, plan.width, m.start.shape[1]))
        values[f"bias_{plan.layers}"] = m.start[:, None]
        values["dispersion"] = np.zeros((k, 1, m.start.shape[1]))
        self.values = {name: self.tensor(np.array(v, dtype=np.float32)).requires_grad_() for name, v in values.items()}
        self.mean, self.gain = self.tensor(m.mean[:, None]), self.tensor(m.gain[:, None])
        self.centre, self.scale = self.tensor(m.centre[:, None]), self.tensor(m.scale[:, None])

    def tensor(self, values: np.ndarray) -> Any:
        """On the networks' device."""
        import torch

        return torch.from_numpy(np.ascontiguousarray(values)).to(self.device)

    def forward(self, x: Any, masks: list[Any] | None = None) -> Any:
        """[b, p] -> [parts, b, genes]; `masks` [b, width] of each layer, and last of the features, drop units."""
        import torch
        from torch.nn.functional import leaky_relu

        h = ((x - self.mean) * self.gain).clamp(-CLIP, CLIP)
        if masks is not None:
            h = h * masks[-1]
        for i in range(self.plan.layers):
            h = leaky_relu(torch.baddbmm(self.values[f"bias_{i}"], h, self.values[f"weight_{i}"]), SLOPE)
            if masks is not None:
                h = h * masks[i]
        last = self.plan.layers
        return torch.baddbmm(self.values[f"bias_{last}"], h, self.values[f"weight_{last}"])

    def loss(self, out: Any, y: Any, offset: Any) -> Any:
        """Mean over genes, [parts, b]."""
        import torch

        if self.plan.loss == "mse":
            return ((out - (y - self.centre) / self.scale) ** 2).mean(dim=2)
        log_mean = (out + offset[:, None]).clamp(-20, 20)
        if self.plan.loss == "poisson":
            each = log_mean.exp() - y * log_mean
        else:
            theta = torch.exp(self.values["dispersion"].clamp(-8, 8))
            both = torch.logaddexp(log_mean, torch.log(theta))
            each = (y + theta) * both - y * log_mean - theta * torch.log(theta)
            each = each - torch.lgamma(y + theta) + torch.lgamma(theta)
        return (each * self.scale).mean(dim=2)


class Trainer:
    """Steps of all networks over shared batches; over several processes each takes its share of every batch."""

    def __init__(self, networks: Networks, data: Data, ranks: Ranks) -> None:
        import torch

        plan = networks.plan
        self.networks, self.data, self.ranks, self.plan = networks, data, ranks, plan
        self.rows = data.order[(data.weights[:, data.order] > 0).any(axis=0)]
        self.held = np.flatnonzero(data.held.any(axis=0))
        self.batch = min(plan.batch, len(self.rows))
        self.steps = -(-len(self.rows) // self.batch)
        values = networks.values
        decayed = [v for k, v in values.items() if k.startswith("weight")]
        others = [v for k, v in values.items() if not k.startswith("weight")]
        self.optimiser = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": plan.decay}, {"params": others, "weight_decay": 0.0}], lr=plan.lr
        )
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimiser, plan.lr, total_steps=max(plan.epochs * self.steps, 2), pct_start=_WARM
        )
        self.rng = np.random.default_rng([plan.seed, 1])
        self.generator = torch.Generator().manual_seed(plan.seed)
        self.X = _resident(data.X, networks.device)

    def features(self, rows: np.ndarray) -> Any:
        """float32 [b, p] on the device."""
        import torch

        if isinstance(self.X, torch.Tensor):
            return self.X[torch.from_numpy(rows).to(self.X.device)].float()
        return self.networks.tensor(np.asarray(self.X[rows], dtype=np.float32))

    def _masks(self, size: int, mine: slice) -> list[Any] | None:
        import torch

        plan = self.plan
        if plan.dropout == plan.feature_dropout == 0:
            return None
        # Drawn on the CPU for the whole batch: the same whatever the device and the number of processes.
        sizes = [(plan.width, plan.dropout)] * plan.layers + [(self.data.X.shape[1], plan.feature_dropout)]
        drawn = [(torch.rand((size, wide), generator=self.generator), rate) for wide, rate in sizes]
        return [((d[mine] >= rate) / (1 - rate)).to(self.networks.device) for d, rate in drawn]

    def epoch(self) -> None:
        """One pass over the rows."""
        order, data, net, ranks = self.rng.permutation(self.rows), self.data, self.networks, self.ranks
        for start in range(0, len(order), self.batch):
            whole = order[start : start + self.batch]
            share = -(-len(whole) // ranks.world)
            mine = slice(ranks.rank * share, (ranks.rank + 1) * share)
            masks, rows = self._masks(len(whole), mine), whole[mine]
            weights = data.weights[:, rows] / np.maximum(data.weights[:, whole].sum(axis=1, keepdims=True), 1e-9)
            self.optimiser.zero_grad(set_to_none=False)
            y, offset = net.tensor(dense(data.target, rows)), net.tensor(data.offset[rows])
            each = net.loss(net.forward(self.features(rows), masks), y, offset)
            (each * net.tensor(weights.astype(np.float32))).sum().backward()
            self._add_up()
            self.optimiser.step()
            self.schedule.step()

    def _add_up(self) -> None:
        """Gradients of all processes, in one message."""
        if self.ranks.world == 1:
            return
        import torch

        own = [v.grad if v.grad is not None else torch.zeros_like(v) for v in self.networks.values.values()]
        total = self.ranks.total(torch.cat([g.ravel() for g in own]))
        for v, part in zip(self.networks.values.values(), total.split([g.numel() for g in own]), strict=True):
            v.grad = part.view_as(v).clone()

    def held_out_loss(self) -> np.ndarray:
        """Of each part on its own held-out rows, float64 [parts]; NaN where it has none."""
        import torch

        held, total = self.data.held, np.zeros(len(self.data.held))
        for rows in (self.held[b] for b in blocks(len(self.held), 4096)):
            y = self.networks.tensor(dense(self.data.target, rows))
            with torch.no_grad():
                out = self.networks.forward(self.features(rows))
                each = self.networks.loss(out, y, self.networks.tensor(self.data.offset[rows])).cpu().numpy()
            total += np.where(held[:, rows], each, 0).sum(axis=1, dtype=np.float64)
        n = held.sum(axis=1)
        found = np.divide(total, n, out=np.full(len(n), np.nan), where=n > 0)
        if self.ranks.world == 1:
            return found
        return np.asarray(self.ranks.first(torch.from_numpy(found).to(self.networks.device)).cpu().numpy())


def train(networks: Networks, data: Data, ranks: Ranks) -> np.ndarray:
    """Run the schedule; each part keeps the weights of its best epoch, and all stop when none gets better.

    Returns
    -------
    int [parts]
        The epoch that each part's weights are of.
    """
    import torch

    trainer, plan = Trainer(networks, data, ranks), networks.plan
    parts = len(data.held)
    best, chosen = np.full(parts, np.inf), np.zeros(parts, dtype=int)
    kept = {k: v.detach().clone() for k, v in networks.values.items()}
    for epoch in range(1, plan.epochs + 1):
        trainer.epoch()
        loss = trainer.held_out_loss()
        # Without held-out rows the last epoch is as good as any.
        better = np.isnan(loss) | (loss < best)
        best, chosen = np.where(better, loss, best), np.where(better, epoch, chosen)
        with torch.no_grad():
            take = torch.from_numpy(np.flatnonzero(better)).to(networks.device)
            for k, v in networks.values.items():
                kept[k][take] = v[take]
        # While the step is still large the loss may rise and fall again.
        if epoch > _WARM * plan.epochs and epoch - chosen.max() >= plan.patience:
            break
    with torch.no_grad():
        for k, v in networks.values.items():
            v.copy_(kept[k])
    return chosen


def _resident(X: Any, device: Any) -> Any:
    """The features on the GPU, in the type they are stored in, where they fill less than half of what is free there."""
    import torch

    if device.type != "cuda" or X.nbytes > torch.cuda.mem_get_info(device)[0] // 2:
        return X
    return torch.from_numpy(np.array(X)).to(device)
