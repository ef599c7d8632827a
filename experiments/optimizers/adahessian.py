"""AdaHessian (Yao et al. 2021) on Neural ODEs: Hessian-vector products in every gradient mode.

The diagonal of the Hessian is estimated as E[z ⊙ H z] with random signs z (Hutchinson). H z comes

- with ``gradient="direct"`` by differentiating the gradient, through the solver, once more;
- with ``"adjoint"`` and ``"checkpoint"``, whose backward passes have no graph, as the central
  difference (g(θ + h z) - g(θ - h z)) / 2h. Its error is O(h²) plus the errors of a gradient over
  h. The two balance where h, relative to the weights, is the cube root of the rounding unit.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pytorch_optimizer
import torch
from torch import Tensor, nn

from experiments.optimizers.evaluation import Evaluation
from experiments.optimizers.parameters import trainable_groups
from snopt import ODEBlock
from snopt.validate import check_choice, check_count, check_number


class AdaHessian(pytorch_optimizer.AdaHessian):  # type: ignore[misc]
    """AdaHessian of ``pytorch_optimizer``, given the Hessian's diagonal.

    Args:
        model: the model; its ODE blocks say which products are possible.
        lr: learning rate.
        betas: decay of the gradient's mean and of the squared diagonal's.
        eps: added to the denominator.
        weight_decay: decoupled.
        hessian_power: exponent of the diagonal, in (0, 1].
        update_period: steps between two estimates of the diagonal.
        samples: vectors z an estimate.
        hvp: ``"auto"``, ``"double_backward"`` (needs ``gradient="direct"``) or
            ``"finite_difference"``.
        relative_step: ‖h z‖ / ‖θ‖; None means the cube root of the dtype's rounding unit.
        average_kernels: average the diagonal over the places of a convolution kernel, the paper's
            spatial averaging.
        params: parameters or parameter groups to train; None means all of the model.

    Raises:
        ValueError: an argument is out of range, or the gradient mode has no double backward.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float = 0.15,
        betas: Sequence[float] = (0.9, 0.999),
        eps: float = 1e-4,
        weight_decay: float = 0.0,
        hessian_power: float = 1.0,
        update_period: int = 1,
        samples: int = 1,
        hvp: str = "auto",
        relative_step: float | None = None,
        average_kernels: bool = True,
        params: Iterable[Any] | None = None,
    ) -> None:
        """Check the arguments and choose how products are made."""
        check_number("hessian_power", hessian_power, "(0, 1]")
        check_count("update_period", update_period)
        check_count("samples", samples)
        check_number("relative_step", relative_step, "(0, 1)", or_none=True)
        self.hvp = _choose(hvp, model)
        self.samples = samples
        self.relative_step = relative_step
        self.average_kernels = average_kernels
        super().__init__(
            [{**g.settings, "params": g.params} for g in trainable_groups(model, params)],
            lr=lr,
            betas=(betas[0], betas[1]),
            eps=eps,
            weight_decay=weight_decay,
            hessian_power=hessian_power,
            update_period=update_period,
        )

    def train_step(self, evaluation: Evaluation) -> None:
        """Evaluate gradient and Hessian diagonal of the batch, then step."""
        every = [p for group in self.param_groups for p in group["params"]]
        params = [p for p in every if p.requires_grad]  # one may have been frozen since
        if self.param_groups[0].get("step", 0) % self.update_period:
            evaluation()
            self.step()
            return
        if self.hvp == "double_backward":
            products = self._by_double_backward(evaluation, params)
        else:
            products = self._by_differences(evaluation, params)
        found = {id(p): self._averaged(d) for p, d in zip(params, products, strict=True)}
        self.step(hessian=[found.get(id(p), torch.zeros_like(p)) for p in every])

    def _by_double_backward(self, evaluation: Evaluation, params: list[Tensor]) -> list[Tensor]:
        """Return the mean of z ⊙ H z and leave the gradient in ``.grad``."""
        evaluation.optimizer.zero_grad()
        loss = evaluation.loss()
        grads = torch.autograd.grad(loss, params, create_graph=True, allow_unused=True)
        used = [i for i, g in enumerate(grads) if g is not None and g.requires_grad]
        diagonal = [torch.zeros_like(p) for p in params]
        for sample in range(self.samples):
            signs = _signs(params)
            products = torch.autograd.grad(
                [grads[i] for i in used],
                [params[i] for i in used],
                [signs[i] for i in used],
                allow_unused=True,
                retain_graph=sample + 1 < self.samples,
            )
            for i, product in zip(used, products, strict=True):
                if product is not None:
                    diagonal[i].addcmul_(signs[i], product, value=1 / self.samples)
        for p, g in zip(params, grads, strict=True):
            p.grad = None if g is None else g.detach()
        return diagonal

    @torch.no_grad()
    def _by_differences(self, evaluation: Evaluation, params: list[Tensor]) -> list[Tensor]:
        """Return the mean of z ⊙ H z and leave the gradient in ``.grad``; weights stay exactly."""
        evaluation()
        grads = [p.grad for p in params]
        start = [p.clone() for p in params]
        diagonal = [torch.zeros_like(p) for p in params]
        try:
            for _ in range(self.samples):
                signs = _signs(params)
                h = self._step_size(start)
                for direction in (h, -h):
                    for p, value, z in zip(params, start, signs, strict=True):
                        torch.add(value, z, alpha=direction, out=p)
                    found = evaluation.gradients(params)
                    for total, z, g in zip(diagonal, signs, found, strict=True):
                        if g is not None:
                            total.addcmul_(z, g, value=1 / (2 * direction * self.samples))
        finally:
            for p, value in zip(params, start, strict=True):
                p.copy_(value)
        for p, g in zip(params, grads, strict=True):
            p.grad = g
        return diagonal

    def _step_size(self, weights: list[Tensor]) -> float:
        relative = self.relative_step
        if relative is None:
            relative = float(torch.finfo(weights[0].dtype).eps) ** (1 / 3)
        squares = sum(float(w.double().square().sum()) for w in weights)
        count = sum(w.numel() for w in weights)
        size = (squares / count) ** 0.5  # all signs have length 1, so ‖z‖² is their number
        return float(relative * (size or 1.0))

    def _averaged(self, diagonal: Tensor) -> Tensor:
        if not self.average_kernels or diagonal.ndim < 3:
            return diagonal
        mean = diagonal.mean(dim=tuple(range(2, diagonal.ndim)), keepdim=True)
        return mean.expand_as(diagonal).contiguous()


def _signs(params: Sequence[Tensor]) -> list[Tensor]:
    """Return random signs like the parameters, from torch's global generator."""
    return [torch.randint_like(p, 0, 2).mul_(2).sub_(1) for p in params]


def _choose(hvp: str, model: nn.Module) -> str:
    """Return how products are made with this model's gradient modes."""
    check_choice("hvp", hvp, ("auto", "double_backward", "finite_difference"))
    modes = {m.gradient for m in model.modules() if isinstance(m, ODEBlock)} - {"direct"}
    if hvp == "double_backward" and modes:
        raise ValueError(
            "hvp=double_backward differentiates the gradient once more, which needs"
            f" solver.gradient=direct; with {', '.join(sorted(modes))} use"
            " optimizer.hvp=finite_difference"
        )
    if hvp == "auto":
        return "finite_difference" if modes else "double_backward"
    return hvp
