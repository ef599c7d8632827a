"""What every layer-wise second-order method does: gather curvature, then replace gradients.

:class:`Layerwise` owns the collector and the blocks and knows when to gather. A method says what to
do with the factors of a refresh and how to turn one layer's gradient into its direction.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from snopt.curvature.collector import Collector
from snopt.curvature.factors import Accumulator, Sums
from snopt.curvature.few_rows import ThinSums
from snopt.curvature.layers import groups_of
from snopt.curvature.quadrature import Quadrature, gauss_legendre
from snopt.precondition.ranks import Ranks
from snopt.precondition.weights import Block, find_blocks, untreated, warn_of_missing
from snopt.validate import check_choice, check_count

SCOPES = ("all", "ode")


class BlockState(Protocol):
    """What a method keeps for one weight matrix."""

    @property
    def ready(self) -> bool:
        """Whether a direction can be computed."""
        ...

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of the block's matrix, (groups, out / groups, columns); call it when ready."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to continue exactly."""
        ...

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Take over a state of :meth:`state_dict`, moved to ``device``."""
        ...


State = TypeVar("State", bound=BlockState)


class Layerwise(ABC, Generic[State]):
    """Base of preconditioners that treat each Linear and Conv2d layer as a block of its own.

    Call :meth:`step` between ``backward()`` and the base optimizer's step. Parameters of other
    kinds and layers whose weight is frozen or computed by a parametrization (one warning names what
    is trained of both) and layers that never received data keep their gradient.

    Args:
        model: the model; its layers may be inside or outside ODE solves, used once or many times.
        make_state: makes the method's state of one block.
        update_freq: steps between two gatherings of curvature, at least 1; the first step gathers.
        quadrature: rule for the nodes on each smooth piece of a solve; None means
            ``gauss_legendre(4)``.
        scope: ``"all"``, or ``"ode"`` for layers inside an ODE solve only.
        curvature_batch: rows of the batch from which curvature is made, evenly spaced; None
            means all of them.
        params: the parameters that may be preconditioned; None means all of the model.
        accumulator: makes the running sums of one layer.

    Raises:
        TypeError: if ``model`` is no module, or ``quadrature`` no rule.
        ValueError: if an argument is out of range or the model has no layer to precondition.
    """

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
        self.update_freq = update_freq
        self.scope = scope
        self.steps = 0
        params = None if params is None else list(params)
        self._blocks, keys = find_blocks(model, params, make_state)
        if scope == "all":
            self._tell_of(untreated(model, params, self._blocks.values()))
        self._collector = Collector(
            keys,
            gauss_legendre(4) if quadrature is None else quadrature,
            accumulator,
            scope,
            curvature_batch,
        )
        self._collector.arm()
        self.vectors = 1  # backward passes that gathered curvature from the same rows
        self.ranks: Ranks | None = None

    def distribute(self, process_group: dist.ProcessGroup | None = None) -> None:
        """Average curvature over ranks; :meth:`step` is then collective.

        Args:
            process_group: of ``torch.distributed``, which must be initialised; None: all ranks.

        Raises:
            RuntimeError: if there is no process group, or this has been called before.
            ValueError: if the method gathers something else than factors.
        """
        if self._collector.accumulator not in (Accumulator, ThinSums):
            raise ValueError(f"{type(self).__name__} gathers more than factors to average")
        if self.ranks is not None:
            raise RuntimeError("distribute() has been called before")
        self.ranks = Ranks(process_group)
        self._collector.max_rows = self.ranks.share(self._collector.max_rows)

    @property
    def only_on_request(self) -> bool:
        """Whether ``loss.backward()`` gathers nothing and :meth:`gather` has to be called."""
        return self._collector.paused

    @only_on_request.setter
    def only_on_request(self, value: bool) -> None:
        self._collector.paused = value

    def gather(self, output: Tensor, vectors: Sequence[Tensor]) -> None:
        """Gather curvature from backward passes of given vectors in place of the loss's.

        No gradient is changed. Frees the graph of ``output``.

        Args:
            output: what the loss was computed from; its graph must have been retained.
            vectors: each like ``output``, for the mean over the batch.
        """
        weights = [block.layer.weight for block in self._blocks.values()]
        paused, self._collector.paused = self._collector.paused, False
        try:
            for i, vector in enumerate(vectors, start=1):
                last = i == len(vectors)
                torch.autograd.grad(
                    output, weights, vector, retain_graph=not last, allow_unused=True
                )
        finally:
            self._collector.paused = paused
        self.vectors = len(vectors)

    @property
    def curvature(self) -> Mapping[nn.Module, State]:
        """Layer → the method's state, for the layers that have some."""
        return {b.layer: b.state for b in self._blocks.values() if b.state.ready}

    @property
    def failures(self) -> int:
        """Decompositions that failed so far; the layer kept its previous one each time."""
        return sum(int(getattr(block.state, "failures", 0)) for block in self._blocks.values())

    @property
    def due(self) -> bool:
        """Whether the coming step takes in new curvature."""
        return self._collector.armed

    @torch.no_grad()
    def step(
        self, param_groups: Sequence[Mapping[str, Any]] = (), *, loss_scale: float | Tensor = 1.0
    ) -> None:
        """Take in new curvature if it is time, then precondition the gradients in place.

        Args:
            param_groups: groups whose settings override the defaults for the layers whose weight
                they hold.
            loss_scale: what the loss was multiplied with for the backward pass (loss scaling in
                half precision) and the gradients have been divided by since.
        """
        if self._collector.armed:
            self._take_in(loss_scale)
        own = {id(p): group for group in param_groups for p in group["params"]}
        pairs = [
            (block, own.get(id(block.layer.weight), {}))
            for block in self._blocks.values()
            if block.layer.weight.grad is not None and block.state.ready
        ]
        self._precondition(pairs)
        self.steps += 1
        self._arm_if_due()

    def clear(self) -> None:
        """Forget curvature gathered from backward passes whose gradients were thrown away."""
        self._collector.clear()

    def state_dict(self) -> dict[str, Any]:
        """Return the number of steps and every block's state: tensors and numbers only."""
        layers = {n: b.state.state_dict() for n, b in self._blocks.items()}
        return {"steps": self.steps, "layers": layers}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state of :meth:`state_dict`.

        Raises:
            ValueError: if it belongs to a model with other layers.
        """
        missing = sorted(self._blocks.keys() ^ state["layers"].keys())
        if missing:
            raise ValueError(
                f"the state is another model's; layers that only one has: {', '.join(missing)}"
            )
        for name, block in self._blocks.items():
            block.state.load_state_dict(state["layers"][name], block.layer.weight.device)
            if block.state.ready:
                _check_fit(block)
        self.steps = int(state["steps"])
        self._arm_if_due()

    def _tell_of(self, names: Sequence[str]) -> None:
        """Name, once, the parameters that keep their gradient whatever happens."""
        if names:
            method = type(self).__name__.removesuffix("Preconditioner") or "SNOpt"
            warnings.warn(
                f"{method} does not treat {', '.join(names)}: the plain update for these",
                UserWarning,
                stacklevel=5,
            )

    @abstractmethod
    def _refresh(self, gathered: Mapping[str, Any]) -> None:
        """Take in what was gathered, :meth:`Sums.factors` of every layer that received data."""

    @abstractmethod
    def _precondition(self, pairs: Sequence[tuple[Block[State], Mapping[str, Any]]]) -> None:
        """Replace the gradients of these blocks, each with its parameter group's settings."""

    def _wants_curvature(self) -> bool:
        """Whether the step with number ``self.steps`` is to take in new curvature."""
        return self.steps % self.update_freq == 0

    def _arm_if_due(self) -> None:
        if self._wants_curvature():
            self._collector.arm()
        else:
            self._collector.disarm()

    def _take_in(self, loss_scale: float | Tensor) -> None:
        sums = self._collector.sums
        if self.only_on_request and not sums:
            raise RuntimeError(
                "no curvature was gathered for this step: call optimizer.backward(loss, output) in"
                " place of loss.backward(); only curvature='empirical' comes with the gradient"
            )
        gathered = {name: sums.pop(name).factors() for name in self._blocks if name in sums}
        if self.vectors > 1:
            gathered = {name: f.of_vectors(self.vectors) for name, f in gathered.items()}
        for factors in gathered.values():
            factors.unscale(loss_scale)
        if self.ranks is not None:
            weights = {n: b.layer.weight for n, b in self._blocks.items()}
            gathered = self.ranks.factors(gathered, weights)
        self._refresh(gathered)
        if self.scope == "all" or not gathered:  # else those outside have none by choice
            warn_of_missing(self._blocks.values(), gathered)
        self._collector.clear()


def _check_fit(block: Block[Any]) -> None:
    groups, out, columns = block.state.shape
    if (groups * out, columns) not in block.shapes() or groups != groups_of(block.layer):
        rows, own = block.shapes()[0]
        raise ValueError(
            f"the state's layer {block.name} is of another size: its matrix has"
            f" {groups * out} × {columns} entries, this model's {rows} × {own} and a bias"
        )
