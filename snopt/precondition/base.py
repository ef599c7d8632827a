"""A layer-wise preconditioner and a base optimizer as one ``torch.optim.Optimizer``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from snopt.curvature.likelihood import CURVATURES, loss_vectors
from snopt.precondition.layerwise import Layerwise
from snopt.validate import check_choice, check_count

Method = TypeVar("Method", bound=Layerwise[Any])


class PreconditionedOptimizer(Optimizer, Generic[Method]):
    """Preconditions the gradients, then lets a base optimizer take the step.

    The two share parameter groups and state: schedulers and checkpoints see what the base uses.
    After :meth:`step`, ``.grad`` holds the preconditioned gradient.

    Args:
        preconditioner: the layer-wise method, on the same parameters.
        base: the optimizer of the step itself, made with the parameter groups.
        defaults: further settings of each parameter group, such as damping.

        curvature: ``"empirical"``; ``"mc"`` (labels drawn from the model) or ``"ggn"`` (exact loss
            Hessian, one backward pass for each output) need :meth:`backward`.
        samples: labels drawn for each row, with ``mc``.

    Raises:
        ValueError: if the base optimizer evaluates the loss more than once in a step, or an
            argument is out of range.
    """

    def __init__(
        self,
        preconditioner: Method,
        base: Optimizer,
        defaults: Mapping[str, Any] | None = None,
        *,
        curvature: str = "empirical",
        samples: int = 1,
    ) -> None:
        """Share the base optimizer's parameter groups and state."""
        check_choice("curvature", curvature, CURVATURES)
        check_count("samples", samples)
        self.curvature_type, self.samples = curvature, samples
        preconditioner.only_on_request = curvature != "empirical"
        self.preconditioner = preconditioner
        self.base = base
        closure = inspect.signature(base.step).parameters.get("closure")
        if closure is not None and closure.default is inspect.Parameter.empty:
            raise ValueError(
                f"{type(base).__name__} evaluates the loss more than once in a step and"
                " cannot be the base optimizer"
            )
        self.loss_scale: float | None = None
        super().__init__(base.param_groups, {**base.defaults, **(defaults or {})})
        # One list and one state for both: schedulers and checkpoints see what the base uses.
        self.base.param_groups = self.param_groups
        self.state = self.base.state

    def distribute(self, process_group: dist.ProcessGroup | None = None) -> None:
        """Train data-parallel from now on; see ``Layerwise.distribute``.

        The gradients must be averages over the ranks when :meth:`step` is called: wrap the model in
        ``DistributedDataParallel``, or call :func:`snopt.average_gradients` before.
        """
        self.preconditioner.distribute(process_group)

    @property
    def curvature(self) -> Mapping[nn.Module, Any]:
        """Layer → the method's state of it, for the layers that have some."""
        return self.preconditioner.curvature

    @property
    def failures(self) -> int:
        """Decompositions that failed so far; the layer kept its previous one each time."""
        return self.preconditioner.failures

    def metrics(self) -> dict[str, float]:
        """Return numbers about the optimizer itself, for a log."""
        return {"failures": float(self.failures)}

    def backward(
        self,
        loss: Tensor,
        output: Tensor,
        likelihood: str = "categorical",
        *,
        scale: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        """Run ``loss.backward()`` and, on a refresh step, gather the curvature asked for.

        With ``curvature="empirical"`` this is ``loss.backward()`` alone. Otherwise the output's
        vectors y with E[Σ y yᵀ] = H are pulled back to every layer, one backward pass each; the
        parameters' gradients are the loss's and nothing else.

        Args:
            loss: mean over the batch of the negative log-likelihood, times ``scale``.
            output: what the loss was computed from, (batch, outputs): logits, or means.
            likelihood: ``"categorical"`` or ``"gaussian"``, see :func:`snopt.curvature.likelihood`.
            scale: what the mean loss was multiplied with: 1/k for k microbatches, a loss scale.
            generator: where the labels of ``mc`` are drawn from.

        Raises:
            ValueError: if the output is no matrix or the likelihood is unknown.
        """
        needed = self.curvature_type != "empirical" and self.preconditioner.due
        vectors: list[Tensor] = []
        if needed:
            vectors = loss_vectors(
                output,
                likelihood,
                self.curvature_type,
                samples=self.samples,
                generator=generator,
            )
        loss.backward(retain_graph=needed)
        if needed:
            rows = output.shape[0]
            self.preconditioner.gather(output, [y * (scale / rows) for y in vectors])

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Precondition the gradients and take the base optimizer's step.

        Args:
            closure: recomputes the loss and its gradients, and returns the loss.

        Returns:
            The closure's loss, or None.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        scale = 1.0
        if hasattr(self, "found_inf"):  # torch.amp.GradScaler is stepping us
            if bool(self.found_inf):
                self.preconditioner.clear()
                return loss
            scale = self._unscale()
        self._take_step(scale)
        return loss

    def _take_step(self, loss_scale: float | Tensor) -> None:
        """Precondition and step, with gradients that are there and unscaled."""
        self.preconditioner.step(self.param_groups, loss_scale=loss_scale)
        self.base.step()

    def _unscale(self) -> Any:
        """Return the scaler's scale; divide the gradients by it unless that has been done."""
        scale = getattr(self, "grad_scale", None)
        if scale is None:
            if self.loss_scale is None and self.preconditioner.due:
                raise RuntimeError(
                    "the gradients were unscaled before step(), so the scale of the curvature is"
                    " unknown: set optimizer.loss_scale = scaler.get_scale() before scaler.step()"
                )
            return 1.0 if self.loss_scale is None else self.loss_scale
        grads = [p.grad for g in self.param_groups for p in g["params"] if p.grad is not None]
        torch._foreach_div_(grads, scale)
        return scale

    # Tells GradScaler to hand us the scale instead of unscaling: the curvature needs it too.
    _step_supports_amp_scaling = True

    def __getstate__(self) -> dict[str, Any]:
        """Refuse to be copied or pickled.

        Raises:
            TypeError: always.
        """
        name = type(self).__name__
        raise TypeError(
            f"{name} cannot be copied or pickled: it holds hooks on its model; make a new one for"
            " the copied model and use state_dict() and load_state_dict()"
        )

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset the gradients, and the curvature gathered with them."""
        super().zero_grad(set_to_none)
        self.preconditioner.clear()

    def state_dict(self) -> dict[str, Any]:
        """Return the base optimizer's state with one more entry, ``"preconditioner"``."""
        return {**super().state_dict(), "preconditioner": self.preconditioner.state_dict()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue from a state of :meth:`state_dict`.

        Raises:
            ValueError: if the state is another optimizer's or another model's.
        """
        if "preconditioner" not in state_dict:
            name = type(self).__name__
            raise ValueError(f"the state is not {name}'s: it has no entry 'preconditioner'")
        own = {k: v for k, v in state_dict.items() if k != "preconditioner"}
        self.preconditioner.load_state_dict(state_dict["preconditioner"])
        self.base.load_state_dict(own)
        self.param_groups = self.base.param_groups
        self.state = self.base.state


def as_groups(model: nn.Module, params: Iterable[Any] | None) -> list[dict[str, Any]]:
    """Return parameters or parameter groups as groups, iterators made into lists.

    Args:
        model: the model.
        params: parameters or groups; None means all parameters of the model.

    Raises:
        TypeError: if ``params`` mixes the two.
    """
    entries = list(model.parameters() if params is None else params)
    groups = [e for e in entries if isinstance(e, dict)]
    if not groups:
        return [{"params": entries}]
    if len(groups) < len(entries):
        raise TypeError("params must hold either parameters or parameter groups, not both")
    members = [g["params"] for g in groups]
    lists = [[m] if isinstance(m, Tensor) else list(m) for m in members]
    return [{**g, "params": m} for g, m in zip(groups, lists, strict=True)]


def members(groups: Iterable[Mapping[str, Any]]) -> list[Tensor]:
    """Return all parameters of parameter groups."""
    return [p for group in groups for p in group["params"]]
