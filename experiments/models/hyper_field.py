"""The vector field of the 2-d continuous normalizing flow of Chen et al. 2018."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class HyperField(nn.Module):
    """F(t, z) = 1/K Σ_k u_k(t) tanh(w_k(t)ᵀ z + b_k(t)), with w, b, u from a hyper-network of t.

    The hyper-network has three linear layers with tanh between; u is gated, u · σ(g), as published.
    Its layers see the time alone, as one row of shape (1, 1).
    """

    def __init__(self, dim: int, *, width: int = 64, hidden: int = 32) -> None:
        """Build the field.

        Args:
            dim: size D of the state.
            width: number K of terms; 64 in the paper.
            hidden: width of the hyper-network's two inner layers.
        """
        super().__init__()
        self.dim = dim
        self.width = width
        self.fc1 = nn.Linear(1, hidden)
        self.fc2 = nn.Linear(hidden, hidden)
        self.fc3 = nn.Linear(hidden, width * (3 * dim + 1))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        """Return dz/dt, shape (batch, D)."""
        w, b, u = self.weights(t.to(z))
        return torch.tanh(z @ w.T + b) @ u / self.width

    def with_trace(self, t: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return dz/dt, shape (batch, D), and tr(∂F/∂z) in closed form, shape (batch,).

        ∂F/∂z = 1/K Σ_k (1 - h_k²) u_k w_kᵀ, so the trace needs no backward pass of its own.
        """
        w, b, u = self.weights(t.to(z))
        h = torch.tanh(z @ w.T + b)
        return h @ u / self.width, (1 - h.square()) @ (w * u).sum(dim=1) / self.width

    def weights(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return w (K, D), b (K,) and u (K, D) at the scalar time ``t``."""
        hidden = torch.tanh(self.fc1(t.reshape(1, 1)))
        flat = self.fc3(torch.tanh(self.fc2(hidden))).reshape(-1)
        block = self.width * self.dim
        w, u, gate, b = flat.split([block, block, block, self.width])
        shape = (self.width, self.dim)
        return w.view(shape), b, (u * torch.sigmoid(gate)).view(shape)
