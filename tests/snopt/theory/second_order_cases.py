"""Small systems whose second derivatives autograd can take through the solve."""

from __future__ import annotations

import torch
from snopt_cases import PairField, TanhField, parts_of
from torch import Tensor, nn

import snopt

TIGHT = {"rtol": 1e-10, "atol": 1e-12}


def system(seed: int, kind: str = "tensor", batch: int = 2) -> tuple[nn.Module, object]:
    """Return a random field and a state of it, in float64."""
    torch.manual_seed(seed)
    dim, width = 1 + seed % 2, 2 + seed % 3
    field = (TanhField(dim, width) if kind == "tensor" else PairField(dim)).double()
    z = torch.randn(batch, dim, dtype=torch.float64)
    return field, (z if kind == "tensor" else (z, torch.randn(batch, dtype=torch.float64)))


def interval(direction: str) -> Tensor:
    t = torch.tensor([0.2, 1.1], dtype=torch.float64)
    return t if direction == "forward" else t.flip(0)


def terminal(z: object) -> Tensor:
    """Return a loss whose Hessian is neither constant nor diagonal; convex."""
    flat = torch.cat([part.reshape(-1) for part in parts_of(z)])
    slope = torch.linspace(-1.0, 1.0, flat.numel(), dtype=flat.dtype)
    return (flat**2).sum() / 2 + torch.log1p(torch.exp(slope @ flat)) + (slope * flat).sum()


def solver(field: nn.Module, y0: object, t: Tensor, run=None, **kwargs):
    """Return the flat point (z0, θ), the end of the solve and its integral of ``run`` at a point.

    ``run(t, z, params)`` is a running cost that reads the parameters from a list.
    """
    parts = parts_of(y0)
    named = dict(field.named_parameters())
    point = torch.cat([x.detach().reshape(-1) for x in (*parts, *named.values())])
    sizes = [x.numel() for x in (*parts, *named.values())]

    def end(at: Tensor) -> tuple[Tensor, Tensor]:
        pieces = at.split(sizes)
        shapes = [x.shape for x in (*parts, *named.values())]
        tensors = [p.reshape(s) for p, s in zip(pieces, shapes, strict=True)]
        z0, theta = tensors[: len(parts)], tensors[len(parts) :]
        values = dict(zip(named, theta, strict=True))

        def augmented(time, state):
            z = state[:-1] if isinstance(y0, tuple) else state[0]
            dz = torch.func.functional_call(field, values, (time, z))
            cost = run(time, z, theta) if run is not None else torch.zeros((), dtype=at.dtype)
            return (*parts_of(dz), cost.reshape(1))

        start = (*z0, torch.zeros(1, dtype=at.dtype))
        solution = snopt.odeint(augmented, start, t, **kwargs)
        *z1, cost = (part[-1] for part in solution)
        return torch.cat([part.reshape(-1) for part in z1]), cost.sum()

    return point, end


def as_state(flat: Tensor, y0: object) -> object:
    """Return a flat state in the shapes of ``y0``."""
    parts = parts_of(y0)
    pieces = flat.split([part.numel() for part in parts])
    shaped = tuple(p.reshape(part.shape) for p, part in zip(pieces, parts, strict=True))
    return shaped if isinstance(y0, tuple) else shaped[0]
