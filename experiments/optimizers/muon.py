"""Muon (Jordan et al. 2024): momentum, orthogonalised; what is no matrix is left to AdamW.

``torch.optim.Muon`` takes parameters of two dimensions alone, no kernels and no biases.
``pytorch_optimizer.Muon`` orthogonalises a kernel as the matrix (out, in · height · width) and has
AdamW for the rest. It has to be told which is which: that is all that happens here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pytorch_optimizer
from torch import Tensor, nn

from experiments.optimizers.parameters import tell_of_plain_updates, trainable_groups


class Muon(pytorch_optimizer.Muon):  # type: ignore[misc]
    """Muon for weight matrices and kernels, AdamW for vectors, embeddings and read-outs.

    A GRU cell's stacked gates are one matrix. A matrix with a side of length 1 is a vector: an
    orthogonalised one would be a normalised gradient.

    Args:
        model: the model.
        lr: of the matrices: spectral norm of an update, times √max(1, out / in).
        adamw_lr: of all others.
        exclude: layers whose parameters get AdamW too: names in the model, or starts of them.
            The author advises it for input embeddings and the output layer.
        params: parameters or parameter groups to train; None means all of the model. What a group
            sets holds for its matrices.
        **options: see ``pytorch_optimizer.Muon``.

    Raises:
        ValueError: an argument is out of range, or no matrix is left.
    """

    gradient_only = True  # it takes the model for its names alone (experiments.run.ranks)

    def __init__(
        self,
        model: nn.Module,
        lr: float = 0.02,
        adamw_lr: float = 3e-4,
        exclude: Sequence[str] = (),
        params: Iterable[Any] | None = None,
        **options: Any,
    ) -> None:
        """Sort the parameters into the two groups."""
        trained = trainable_groups(model, params)
        embeddings = {
            id(parameter)
            for module in model.modules()
            if isinstance(module, nn.Embedding | nn.EmbeddingBag)
            for parameter in module.parameters()
        }
        groups: list[dict[str, Any]] = []
        others: list[tuple[str, Tensor]] = []
        for group in trained:
            matrices = []
            for name, parameter in group.members:
                left_out = any(name == layer or name.startswith(f"{layer}.") for layer in exclude)
                if is_matrix(parameter) and not left_out and id(parameter) not in embeddings:
                    matrices.append(parameter)
                else:
                    others.append((name, parameter))
            if matrices:
                groups.append({**group.settings, "params": matrices, "use_muon": True})
        if not groups:
            raise ValueError(
                "there is no weight matrix or kernel for Muon: all parameters are vectors or left"
                " out by exclude"
            )
        if others:
            groups.append({"params": [parameter for _, parameter in others], "use_muon": False})
        tell_of_plain_updates("Muon", f"AdamW at {adamw_lr:g}", [name for name, _ in others])
        super().__init__(groups, lr=lr, adamw_lr=adamw_lr, **options)


def is_matrix(parameter: Tensor) -> bool:
    """Return whether a parameter, as (out, everything else), has two sides longer than 1."""
    return parameter.ndim >= 2 and parameter.shape[0] > 1 and parameter[0].numel() > 1
