"""State and log-density together: the ODE that a continuous normalizing flow solves."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from experiments.models.trace import exact_trace, hutchinson_trace

Pair = tuple[Tensor, Tensor]


class AugmentedField(nn.Module):
    """d(z, log p)/dt = (F(t, z), -tr ∂F/∂z), the instantaneous change of variables.

    An object belongs to one solve: its noise never changes. The adjoint, which evaluates the field
    again long after the forward solve, keeps the object and so sees the same noise, even if other
    solves have begun in between.

    F's layers run once an evaluation. The trace differentiates through that same evaluation, or,
    where the field has a method ``with_trace``, comes from it in closed form.
    """

    def __init__(
        self, field: nn.Module, *, noise: Tensor | None = None, density: bool = True
    ) -> None:
        """Wrap a field; its parameters are shared, not copied.

        Args:
            field: F, called as ``field(t, z)``; row n of its result depends on row n of z only.
            noise: frozen noise of the trace estimate, shape (batch, dim); None means the exact
                trace.
            density: False leaves the log-density where it is, for sampling.
        """
        super().__init__()
        self.field = field
        self.noise = noise
        self.density = density

    def forward(self, t: Tensor, state: Pair) -> Pair:
        """Return the time derivatives of z (batch, dim) and of the log-density (batch, 1)."""
        z, logp = state
        if not self.density:
            return self.field(t, z), torch.zeros_like(logp)
        closed_form = getattr(self.field, "with_trace", None)
        if self.noise is None and closed_form is not None:
            dz, trace = closed_form(t, z)
            return dz, -trace[:, None]

        differentiable = torch.is_grad_enabled()
        with torch.enable_grad():
            if not z.requires_grad:
                z = z.detach().requires_grad_()
            dz = self.field(t, z)
            if self.noise is None:
                trace = exact_trace(dz, z, create_graph=differentiable)
            else:
                trace = hutchinson_trace(dz, z, self.noise, create_graph=differentiable)
        if not differentiable:
            dz, trace = dz.detach(), trace.detach()
        return dz, -trace[:, None]
