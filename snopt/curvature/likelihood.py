"""Square roots of the loss Hessian at a model's output: where ``mc`` and ``ggn`` curvature starts.

For a loss that is the negative log-likelihood of a distribution with natural parameters o, one row
of output a sample, the Hessian H of one sample's loss is the covariance of the gradient ∂ℓ/∂o with
labels drawn from the model's own prediction. Both kinds return vectors y with Σ y yᵀ equal to H
(``ggn``, one vector for each output) or in expectation (``mc``, from drawn labels): the rows of
"Which vectors" in docs/method.md, section 4.
"""

from __future__ import annotations

import torch
from torch import Tensor

from snopt.validate import check_choice

LIKELIHOODS = ("categorical", "gaussian")

CURVATURES = ("empirical", "mc", "ggn")


def loss_vectors(
    output: Tensor,
    likelihood: str,
    curvature: str,
    *,
    samples: int = 1,
    generator: torch.Generator | None = None,
) -> list[Tensor]:
    """Return y_i of shape (batch, outputs) with Σ y_i y_iᵀ = H for each sample.

    ``mc`` vectors are divided by √samples, so that both kinds are summed.

    Args:
        output: (batch, outputs): logits, or means of a Gaussian of unit variance.
        likelihood: ``"categorical"`` (softmax cross-entropy) or ``"gaussian"`` (½ ‖o - y‖²).
        curvature: ``"mc"`` or ``"ggn"``.
        samples: labels drawn for each sample, with ``mc``.
        generator: where the labels are drawn from.

    Raises:
        ValueError: if the output is no matrix, or a name is unknown.
    """
    if output.dim() != 2:
        raise ValueError(
            f"curvature={curvature!r} needs an output of shape (batch, outputs), got"
            f" {tuple(output.shape)}"
        )
    check_choice("likelihood", likelihood, LIKELIHOODS)
    check_choice("curvature", curvature, CURVATURES[1:])
    output = output.detach()
    outputs = output.shape[1]
    identity = torch.eye(outputs, dtype=output.dtype, device=output.device)
    if likelihood == "gaussian":
        if curvature == "ggn":
            return [identity[c].expand_as(output) for c in range(outputs)]
        draws = [_normal(output, generator) for _ in range(samples)]
    else:
        p = torch.softmax(output, dim=1)
        if curvature == "ggn":
            # H = diag(p) - p pᵀ is the sum over classes of √p_c (e_c - p) times itself.
            return [p[:, c : c + 1].sqrt() * (identity[c] - p) for c in range(outputs)]
        labels = torch.multinomial(p, samples, replacement=True, generator=generator)
        draws = [p - identity[labels[:, i]] for i in range(samples)]
    return [draw / samples**0.5 for draw in draws]


def _normal(output: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.randn(output.shape, dtype=output.dtype, device=output.device, generator=generator)
