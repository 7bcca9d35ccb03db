"""DeepST's network: a denoising autoencoder beside a variational graph autoencoder, clustered by DEC. Torch only."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

ALPHA = 0.9  # of the Student kernel
Z_DIM = 28


class Attention(nn.Module):
    """Graph attention layer with one head (P. Velickovic et al., ICLR 2018).

    Parameters
    ----------
    d_in, d_out
        Widths.
    """

    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(d_in, d_out))
        self.source = nn.Parameter(torch.empty(1, d_out))
        self.target = nn.Parameter(torch.empty(1, d_out))
        self.bias = nn.Parameter(torch.zeros(d_out))
        for p in (self.weight, self.source, self.target):
            nn.init.xavier_uniform_(p)

    def forward(self, x: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        """Weighted sums over each node's neighbours and itself.

        Parameters
        ----------
        x
            [n, d_in].
        edges
            int64 [2, e] (source, target), loops among them.
        """
        source, target = edges
        h = x @ self.weight
        e = F.leaky_relu((h * self.source).sum(1)[source] + (h * self.target).sum(1)[target], 0.2)
        top = torch.full((len(x),), -torch.inf, dtype=x.dtype, device=x.device)
        top = top.scatter_reduce(0, target, e.detach(), "amax")
        weight = torch.exp(e - top[target])
        total = torch.zeros(len(x), dtype=x.dtype, device=x.device).index_add(0, target, weight)
        mixed = torch.zeros_like(h).index_add(0, target, (weight / total[target])[:, None] * h[source])
        return mixed + self.bias


def _layer(d_in: int, d_out: int) -> list[nn.Module]:
    return [nn.Linear(d_in, d_out), nn.BatchNorm1d(d_out, momentum=0.01, eps=0.001), nn.ELU(), nn.Dropout(0.01)]


class _Reverse(torch.autograd.Function):
    """Identity whose gradient changes sign: what follows learns samples, what precedes unlearns them."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return -gradients[0]


class Network(nn.Module):
    """The whole model; `z` is 20 numbers of the autoencoder and 8 of the graph.

    Parameters
    ----------
    d_in
        Components given.
    n_samples
        With more than one, a classifier of samples behind a gradient reversal.
    """

    def __init__(self, d_in: int, n_samples: int = 1) -> None:
        super().__init__()
        self.encoder = nn.Sequential(*_layer(d_in, 32), *_layer(32, 20))
        self.conv = Attention(20, 64)
        self.norm = nn.BatchNorm1d(64)
        self.mean, self.log_std = Attention(64, 8), Attention(64, 8)
        self.decoder = nn.Sequential(*_layer(Z_DIM, 32), nn.Linear(32, d_in))
        self.centres = nn.Parameter(torch.zeros(1, Z_DIM))
        layers: list[nn.Module] = []
        for _ in range(2 if n_samples > 1 else 0):
            layers += [nn.Linear(Z_DIM, Z_DIM), nn.ReLU()]
        self.samples = nn.Sequential(*layers, nn.Linear(Z_DIM, n_samples)) if n_samples > 1 else None

    def forward(
        self, x: torch.Tensor, edges: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Embedding, its mean and log standard deviation on the graph side, and the reconstruction.

        Parameters
        ----------
        x
            [n, d_in].
        edges
            int64 [2, e], loops among them.
        """
        own = self.encoder(x)
        graph = F.relu(self.norm(self.conv(own, edges)))
        mean, log_std = self.mean(graph, edges), self.log_std(graph, edges)
        drawn = mean + torch.randn_like(mean) * torch.exp(log_std) if self.training else mean
        z = torch.cat([own, drawn], dim=1)
        return z, mean, log_std, self.decoder(z)

    def assign(self, z: torch.Tensor) -> torch.Tensor:
        """Soft assignment to the centres, [n, K].

        Parameters
        ----------
        z
            [n, 28].
        """
        q = 1 / (1 + torch.cdist(z, self.centres) ** 2 / ALPHA + 1e-8)
        q = q ** ((ALPHA + 1) / 2)
        return q / q.sum(dim=1, keepdim=True)


def graph_loss(z: torch.Tensor, edges: torch.Tensor, *, dropout: float = 0.0, training: bool = False) -> torch.Tensor:
    """Weighted binary cross-entropy of the masked n x n reconstruction, as a sum over edges.

    The published loss takes logits sigmoid(z z^T) o A against A (loops in A) over all n^2 pairs. Off the edges logit
    and label are 0, so each such pair adds log 2 and no gradient: only the edges need computing.

    Parameters
    ----------
    z
        [n, d].
    edges
        int64 [2, e], both directions, loops among them.
    dropout
        Share of z set to 0 in training.
    training
        Whether it is.
    """
    z = F.dropout(z, dropout, training=training)
    n, e = float(len(z)), edges.shape[1]
    logits = torch.sigmoid((z[edges[0]] * z[edges[1]]).sum(dim=1))
    mean = (F.softplus(-logits).sum() + (n * n - e) * float(np.log(2))) / (n * n)
    return n * n / (2 * (n * n - (e - n))) * mean


def loss(net: Network, x: torch.Tensor, noisy: torch.Tensor, edges: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Reconstruction, graph and divergence terms; and the embedding.

    Parameters
    ----------
    net
        In training mode.
    x, noisy
        [n, d_in], what is to come out and what goes in.
    edges
        int64 [2, e], loops among them.
    """
    z, mean, log_std, out = net(noisy, edges)
    divergence = -0.5 / len(x) * (1 + 2 * log_std - mean**2 - torch.exp(log_std) ** 2).sum(dim=1).mean()
    return F.mse_loss(out, x) + graph_loss(z, edges, dropout=0.01, training=net.training) + divergence, z


def sample_loss(net: Network, z: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the sample behind a gradient reversal; 0 for one sample.

    Parameters
    ----------
    net
        The network.
    z
        [n, 28].
    sample
        int64 [n].
    """
    if net.samples is None:
        return torch.zeros((), device=z.device)
    return F.cross_entropy(net.samples(_Reverse.apply(z)), sample)


def target(q: torch.Tensor) -> torch.Tensor:
    """Sharpened assignment, [n, K].

    Parameters
    ----------
    q
        [n, K].
    """
    weight = q**2 / q.sum(dim=0)
    return weight / weight.sum(dim=1, keepdim=True)
