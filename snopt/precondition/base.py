"""What layer-wise second-order optimizers share.

A :class:`Layerwise` preconditioner watches a model's layers, knows when to gather curvature, and
hands out what was gathered; each method derives from it and has its own ``step``.
:class:`PreconditionedOptimizer` puts it before a base optimizer.
"""

from __future__ import annotations

import inspect
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from snopt.curvature.collector import Collector
from snopt.curvature.factors import Accumulator, Sums, ThinSums
from snopt.curvature.layers import groups_of, weight_columns
from snopt.curvature.likelihood import CURVATURES, loss_vectors
from snopt.curvature.quadrature import Quadrature, gauss_legendre
from snopt.precondition.ranks import Ranks
from snopt.precondition.weights import (
    Block,
    check_model,
    find_blocks,
    untreated,
    warn_of_failed,
    warn_of_missing,
)
from snopt.validate import check_choice, check_count, check_number

SCOPES = ("all", "ode")


class BlockState(Protocol):
    """What a method keeps for one weight matrix."""

    @property
    def failures(self) -> int:
        """Decompositions that failed; the previous one was kept."""

    @property
    def ready(self) -> bool:
        """Whether a direction can be computed."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of the block's matrix, (groups, out / groups, columns); call it when ready."""

    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to continue exactly."""

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Take over a state of :meth:`state_dict`, moved to ``device``."""


State = TypeVar("State", bound=BlockState)


class Layerwise(ABC, Generic[State]):
    """Base of preconditioners that treat each Linear and Conv2d layer as one block.

    A method's :meth:`step` is called between ``backward()`` and the base optimizer's step. Where
    :attr:`due`, it takes in what :meth:`gathered` returns; then it replaces the gradients of the
    blocks that :meth:`with_gradient` returns, and ends with :meth:`advance`.

    Parameters of other kinds and layers whose weight is frozen or computed by a parametrization
    (one warning names what is trained of both) and layers that never received data keep their
    gradient.

    Args:
        model: see :class:`snopt.Preconditioner`, also for all that is not named here.
        make_state: makes the method's state of one block.
        update_freq: steps between two gatherings of curvature; the first step gathers.
        accumulator: makes the running sums of one layer.

    Attributes:
        blocks: name → block, for every weight matrix that may be preconditioned.
        steps: steps taken.

    Raises:
        TypeError: if ``model`` is no module, or ``quadrature`` no rule.
        ValueError: if an argument is out of range or the model has no layer to precondition.
    """

    counts_rows = False
    """Whether a step needs the rows of its batch, :meth:`rows`."""

    def __init__(
        self,
        model: nn.Module,
        make_state: Callable[[], State],
        *,
        update_freq: int,
        quadrature: Quadrature | None = None,
        scope: str = "all",
        curvature_batch: int | None = None,
        params: Iterable[Tensor] | None = None,
        accumulator: Callable[[], Sums] = Accumulator,
    ) -> None:
        """Find the layers and wait for the first backward pass."""
        check_count("update_freq", update_freq)
        if curvature_batch is not None:
            check_count("curvature_batch", curvature_batch)
        check_choice("scope", scope, SCOPES)
        self.update_freq, self.scope = update_freq, scope
        self.steps = 0
        check_model(model)
        params = list(model.parameters() if params is None else params)
        self.blocks, keys = find_blocks(model, params, make_state)
        names = untreated(model, params, self.blocks.values())
        if names and scope == "all":
            method = type(self).__name__.removesuffix("Preconditioner") or "SNOpt"
            warnings.warn(
                f"{method} does not treat {', '.join(names)}: the plain update for these",
                UserWarning,
                stacklevel=4,
            )
        rule = gauss_legendre(4) if quadrature is None else quadrature
        self.collector = Collector(
            keys, rule, accumulator, scope, curvature_batch, counts=self.counts_rows
        )
        self.collector.arm()
        self.ranks: Ranks | None = None
        self._owed = False  # whether a refresh that was due could not be made
        self._given: set[str] = set()  # blocks that got data at the last refresh
        self.plain: set[str] = set()  # blocks whose gradient is not that of the uses seen

    @abstractmethod
    def step(
        self, param_groups: Sequence[Mapping[str, Any]] = (), *, loss_scale: float | Tensor = 1.0
    ) -> None:
        """Take in new curvature if it is time, then precondition the gradients in place.

        The arguments are those of :meth:`snopt.Preconditioner.step`.
        """

    @abstractmethod
    def check(self, group: Mapping[str, Any]) -> None:
        """Raise ValueError if a setting of a parameter group, or its default, is out of range."""

    @property
    def due(self) -> bool:
        """Whether the coming step takes in new curvature."""
        return self.collector.armed

    @property
    def takes_in(self) -> bool:
        """Whether the present step takes in new curvature: it is due, and there is a gradient."""
        blocks = self.blocks.values()
        return self.due and any(block.layer.weight.grad is not None for block in blocks)

    def gathered(self, loss_scale: float | Tensor) -> dict[str, Any]:
        """Return what was gathered since the last step that was due, and forget it.

        Returns:
            :meth:`Sums.factors` of every block that received data, averaged over ranks.

        Raises:
            RuntimeError: if :meth:`gather` has to be called and was not.
        """
        self.collector.settle()
        sums = self.collector.sums
        if self.collector.paused and not sums:
            raise RuntimeError(
                "no curvature was gathered for this step: call optimizer.backward(loss, output) in"
                " place of loss.backward(); only curvature='empirical' comes with the gradient"
            )
        unlike = [name for name, agrees in self.collector.checked.items() if not agrees]
        self.plain = set(unlike if self.ranks is None else self.ranks.union(unlike))
        wanted = [name for name in self.blocks if name in sums and name not in self.plain]
        found = {name: sums.pop(name).factors() for name in wanted}
        for factors in found.values():
            factors.unscale(loss_scale)
        if self.ranks is not None:
            weights = {name: block.layer.weight for name, block in self.blocks.items()}
            found = self.ranks.factors(found, weights)
        if self.scope == "all" or not found:  # else those outside have none by choice
            warn_of_missing(
                self.blocks.values(), found, self.plain, self.collector.only_differentiated
            )
        self._given = set(found)
        return found

    def rows(self) -> dict[str, int]:
        """Return the rows that each block's gradient is a mean over, on all ranks, where known."""
        found = {name: sum(rows.values()) for name, rows in self.collector.rows.items()}
        return found if self.ranks is None else self.ranks.rows(found, list(self.blocks))

    def with_gradient(
        self, param_groups: Sequence[Mapping[str, Any]]
    ) -> list[tuple[Block[State], Mapping[str, Any]]]:
        """Return the blocks to precondition, each with its parameter group, if it is in one."""
        for group in param_groups or [{}]:
            self.check(group)
        own = {id(p): group for group in param_groups for p in group["params"]}
        return [
            (block, own.get(id(block.layer.weight), {}))
            for block in self.blocks.values()
            if block.layer.weight.grad is not None
            and block.state.ready
            and block.name not in self.plain
        ]

    def advance(self) -> None:
        """End a step: count it, and gather curvature for the next one if that takes it in."""
        self.steps += 1
        failed = [b for b in self.blocks.values() if b.name in self._given and not b.state.ready]
        self._owed = bool(self.due and (failed or not self.takes_in))
        warn_of_failed(failed)
        self.collector.clear()
        self._arm_if_due()

    def _wants_curvature(self) -> bool:  # for the step with number self.steps
        return self.steps % self.update_freq == 0

    def _arm_if_due(self) -> None:
        if self._owed or self._wants_curvature():
            self.collector.arm()
        else:
            self.collector.disarm()

    def distribute(self, process_group: dist.ProcessGroup | None = None) -> None:
        """Average curvature over the ranks of a group, or all ranks; ``step`` is then collective.

        Raises:
            RuntimeError: if there is no process group, or this has been called before.
            ValueError: if the method gathers something else than factors.
        """
        if self.collector.accumulator not in (Accumulator, ThinSums):
            raise ValueError(f"{type(self).__name__} gathers more than factors to average")
        if self.ranks is not None:
            raise RuntimeError("distribute() has been called before")
        self.ranks = Ranks(process_group)
        self.collector.max_rows = self.ranks.share(self.collector.max_rows)

    def gather(self, output: Tensor, vectors: Sequence[Tensor]) -> None:
        """Gather curvature from backward passes of vectors like ``output`` in place of the loss's.

        The graph of ``output`` must have been retained, and is freed. No gradient is changed.
        """
        weights = [block.layer.weight for block in self.blocks.values()]
        paused, self.collector.paused = self.collector.paused, False
        try:
            for i, vector in enumerate(vectors, start=1):
                keep = i < len(vectors)
                torch.autograd.grad(output, weights, vector, retain_graph=keep, allow_unused=True)
                self.collector.take_in()
        finally:
            self.collector.paused = paused

    @property
    def curvature(self) -> Mapping[nn.Module, State]:
        """Layer → the method's state, for the layers that have some."""
        return {b.layer: b.state for b in self.blocks.values() if b.state.ready}

    @property
    def failures(self) -> int:
        """Decompositions that failed so far; the layer kept its previous one each time."""
        return sum(block.state.failures for block in self.blocks.values())

    def clear(self) -> None:
        """Forget curvature gathered from backward passes whose gradients were thrown away."""
        self.collector.clear()

    def state_dict(self) -> dict[str, Any]:
        """Return the number of steps and every block's state: tensors and numbers only."""
        layers = {name: block.state.state_dict() for name, block in self.blocks.items()}
        return {"steps": self.steps, "layers": layers}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state of :meth:`state_dict`.

        Raises:
            ValueError: if it belongs to a model with other layers.
        """
        missing = sorted(self.blocks.keys() ^ state["layers"].keys())
        if missing:
            raise ValueError(
                f"the state is another model's; layers that only one has: {', '.join(missing)}"
            )
        for name, block in self.blocks.items():
            block.state.load_state_dict(state["layers"][name], block.layer.weight.device)
            if block.state.ready:
                _check_fit(block)
        self.steps = int(state["steps"])
        self._arm_if_due()


def _check_fit(block: Block[Any]) -> None:
    groups, out, columns = block.state.shape
    rows, own = block.layer.weight.shape[0], weight_columns(block.layer)
    most = own if block.layer.bias is None else own + 1
    if (groups, groups * out) != (groups_of(block.layer), rows) or not own <= columns <= most:
        raise ValueError(
            f"the state's layer {block.name} is of another size: its matrix has"
            f" {groups * out} × {columns} entries, this model's {rows} × {own} and a bias"
        )


Method = TypeVar("Method", bound=Layerwise[Any])


class PreconditionedOptimizer(Optimizer, Generic[Method]):
    """Preconditions the gradients, then lets a base optimizer take the step.

    The two share parameter groups and state: schedulers and checkpoints see what the base uses.

    Args:
        preconditioner: the layer-wise method, on the same parameters.
        base: the optimizer of the step itself, made with the parameter groups.
        defaults: further settings of each parameter group, such as damping.
        curvature: ``"empirical"``, ``"mc"`` or ``"ggn"``, as for :class:`snopt.SNOpt`.
        samples: labels drawn for each row, with ``mc``.

    Raises:
        ValueError: if the base optimizer evaluates the loss more than once in a step, or an
            argument is out of range.
    """

    def __init__(
        self,
        preconditioner: Method,
        base: Optimizer,
        defaults: Mapping[str, Any],
        *,
        curvature: str = "empirical",
        samples: int = 1,
    ) -> None:
        """Share the base optimizer's parameter groups and state."""
        check_choice("curvature", curvature, CURVATURES)
        check_count("samples", samples)
        self.curvature_type, self.samples = curvature, samples
        preconditioner.collector.paused = curvature != "empirical"  # until gather() is called
        self.preconditioner, self.base = preconditioner, base
        closure = inspect.signature(base.step).parameters.get("closure")
        if closure is not None and closure.default is inspect.Parameter.empty:
            raise ValueError(
                f"{type(base).__name__} evaluates the loss more than once in a step and"
                " cannot be the base optimizer"
            )
        self.loss_scale: float | None = None
        super().__init__(base.param_groups, {**base.defaults, **defaults})
        self.base.param_groups = self.param_groups
        self.state = self.base.state
        for group in self.param_groups:
            preconditioner.check(group)

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
                output, likelihood, self.curvature_type, samples=self.samples, generator=generator
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
        loss, scale = self._evaluated(closure)
        if scale is not None:
            self.preconditioner.step(self.param_groups, loss_scale=scale)
            self.base.step()
        return loss

    def _evaluated(self, closure: Callable[[], Any] | None) -> tuple[Any, Any]:
        """Return the closure's loss, if any, and the loss scale; None if gradients overflowed."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if not hasattr(self, "found_inf"):
            return loss, 1.0
        if bool(self.found_inf):  # torch.amp.GradScaler is stepping us
            self.preconditioner.clear()
            return loss, None
        scale = getattr(self, "grad_scale", None)
        if scale is None:  # the gradients have been unscaled already
            if self.loss_scale is None and self.preconditioner.due:
                raise RuntimeError(
                    "the gradients were unscaled before step(), so the scale of the curvature is"
                    " unknown: set optimizer.loss_scale = scaler.get_scale() before scaler.step()"
                )
            return loss, 1.0 if self.loss_scale is None else self.loss_scale
        grads = [p.grad for p in members(self.param_groups) if p.grad is not None]
        torch._foreach_div_(grads, scale)
        return loss, scale

    # Tells GradScaler to hand us the scale instead of unscaling: the curvature needs it too.
    _step_supports_amp_scaling = True

    def __getstate__(self) -> dict[str, Any]:
        """Refuse to be copied or pickled: raise TypeError."""
        raise TypeError(
            f"{type(self).__name__} cannot be copied or pickled: it holds hooks on its model; make"
            " a new one for the copied model and use state_dict() and load_state_dict()"
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


def split_options(
    method: type[Layerwise[Any]], options: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the options that a method or a base of it takes, and all others."""
    kinds = [one for one in method.__mro__ if issubclass(one, Layerwise)]
    known = {name for one in kinds for name in inspect.signature(one).parameters}
    own = {name: value for name, value in options.items() if name in known}
    return own, {name: value for name, value in options.items() if name not in known}


def base_step(
    groups: list[dict[str, Any]],
    base: Callable[..., Optimizer] | None,
    lr: float,
    momentum: float,
    weight_decay: float,
    options: dict[str, Any],
) -> Optimizer:
    """Return the optimizer of class ``base``, SGD by default, that takes the preconditioned step.

    Raises:
        ValueError: if a value is out of range, or momentum is given for another base than SGD.
    """
    settings = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
    for values in (settings, *groups):
        for name in settings.keys() & values.keys():
            check_number(name, values[name], "[0, inf)")
    if base is None:
        base, options = torch.optim.SGD, {**options, "momentum": momentum}
    elif momentum:
        raise ValueError("momentum is SGD's; pass the base optimizer's own setting instead")
    if weight_decay:
        options = {**options, "weight_decay": weight_decay}
    return base(groups, lr=lr, **options)


def as_groups(model: nn.Module, params: Iterable[Any] | None) -> list[dict[str, Any]]:
    """Return parameters or groups (None: all of the model) as groups, iterators made into lists.

    Raises:
        TypeError: if ``model`` is no module, or ``params`` mixes the two.
    """
    check_model(model)
    entries = list(model.parameters() if params is None else params)
    groups = [e for e in entries if isinstance(e, dict)]
    if not groups:
        return [{"params": entries}]
    if len(groups) < len(entries):
        raise TypeError("params must hold either parameters or parameter groups, not both")
    lists = [[m] if isinstance(m := g["params"], Tensor) else list(m) for g in groups]
    return [{**g, "params": m} for g, m in zip(groups, lists, strict=True)]


def members(groups: Iterable[Mapping[str, Any]]) -> list[Tensor]:
    """Return all parameters of parameter groups."""
    return [p for group in groups for p in group["params"]]
