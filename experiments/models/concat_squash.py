"""Concat-squash layers, the vector field of FFJORD (Grathwohl et al. 2019)."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

from experiments.base.errors import ConfigError

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "softplus": nn.functional.softplus,
    "tanh": torch.tanh,
}


class ConcatSquashLinear(nn.Module):
    """A linear layer on z, scaled and shifted by the time: layer(z) · σ(gate(t)) + bias(t).

    ``gate`` and ``bias`` see the time alone, as one row of shape (1, 1).
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        """Build the three linear maps.

        Args:
            in_features: size of the input.
            out_features: size of the output.
        """
        super().__init__()
        self.layer = nn.Linear(in_features, out_features)
        self.gate = nn.Linear(1, out_features)
        # No constant part of its own: the layer's bias has that role, as published.
        self.bias = nn.Linear(1, out_features, bias=False)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        """Map (batch, in_features) to (batch, out_features) at the scalar time ``t``."""
        row = t.to(z).reshape(1, 1)
        out: Tensor = self.layer(z) * torch.sigmoid(self.gate(row)) + self.bias(row)
        return out


class ConcatSquashField(nn.Module):
    """Concat-squash layers dim → width → … → dim with an activation between."""

    def __init__(self, dim: int, *, width: int, layers: int, activation: str) -> None:
        """Build the field.

        Args:
            dim: size of the state.
            width: size of the inner layers.
            layers: number of concat-squash layers, at least 1.
            activation: ``"softplus"`` or ``"tanh"``; smooth, because the trace is differentiated.

        Raises:
            ConfigError: if the activation is unknown.
        """
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ConfigError(
                f"unknown activation '{activation}'; valid activations: {', '.join(ACTIVATIONS)}"
            )
        sizes = [dim, *[width] * (layers - 1), dim]
        self.layers = nn.ModuleList(ConcatSquashLinear(a, b) for a, b in pairwise(sizes))
        self.activation = activation

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        """Return dz/dt, shape (batch, dim)."""
        activation = ACTIVATIONS[self.activation]
        for layer in self.layers[:-1]:
            z = activation(layer(t, z))
        out: Tensor = self.layers[-1](t, z)
        return out
