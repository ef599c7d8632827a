"""What layer-wise preconditioners share.

A :class:`Layerwise` preconditioner watches a model's layers, knows when to gather curvature, and
hands out what was gathered; each method derives from it and has its own ``step``.
"""

from __future__ import annotations

import inspect
import warnings
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from functools import partial
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from snopt.curvature.collector import Collector
from snopt.curvature.factors import Accumulator, Sums, ThinSums
from snopt.curvature.layers import groups_of, has_bias, weight_columns
from snopt.curvature.quadrature import Quadrature, gauss_legendre
from snopt.precondition.ranks import Ranks
from snopt.precondition.weights import (
    INCOMPLETE,
    Block,
    check_model,
    find_blocks,
    layers_of,
    members,
    trained_weight,
    untreated,
    warn_of_failed,
    warn_of_missing,
)
from snopt.validate import check_choice, check_count

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


def count(name: str) -> Any:
    """Return an attribute that is kept in :attr:`Layerwise.counts`."""
    return property(
        lambda self: self.counts[name], lambda self, value: self.counts.update({name: value})
    )


class Layerwise(ABC, Generic[State]):
    """Base of preconditioners that treat each Linear and Conv2d layer as one block.

    A method's :meth:`step` is called between ``backward()`` and the base optimizer's step. Where
    :attr:`due`, it takes in what :meth:`gathered` returns; then it replaces the gradients of the
    blocks that :meth:`with_gradient` returns, and ends with :meth:`advance`.

    Parameters of other kinds and layers whose weight is frozen or computed by a parametrization
    (a warning names what is trained of both) and layers that never received data keep their
    gradient. The layers are looked up at every step: they may be freed, frozen, tied, parametrized
    or added in training. What is new gives curvature from the next backward pass on.

    Args:
        model: see :class:`snopt.Preconditioner`, also for all that is not named here.
        make_state: makes the method's state of one block.
        settings: what a parameter group may set for its layers, with defaults.
        update_freq: steps between two gatherings of curvature; the first step gathers.
        accumulator: makes the running sums of one layer.

    Attributes:
        blocks: name → block, for every weight matrix that may be preconditioned.
        state: parameter → entries, among them ``"preconditioner"``, the method's state of a weight;
            an optimizer's own ``state`` where there is one.
        steps: steps taken.

    Raises:
        TypeError: if ``model`` is no module, or ``quadrature`` no rule.
        ValueError: if an argument is out of range or the model has no layer to precondition.
    """

    counts_rows = False
    """Whether a step needs the rows of its batch, :meth:`rows`."""
    COUNTS: ClassVar[Mapping[str, Any]] = {"steps": 0}

    steps = count("steps")

    def __init__(
        self,
        model: nn.Module,
        make_state: Callable[[], State],
        settings: dict[str, Any],
        *,
        update_freq: int,
        quadrature: Quadrature | None = None,
        scope: str = "all",
        curvature_batch: int | None = None,
        params: Iterable[Tensor] | None = None,
        accumulator: Callable[[], Sums] = Accumulator,
    ) -> None:
        """Find the layers and wait for the first backward pass."""
        self.check(settings)
        check_count("update_freq", update_freq)
        if curvature_batch is not None:
            check_count("curvature_batch", curvature_batch)
        check_choice("scope", scope, SCOPES)
        check_model(model)
        self.model, self.settings = model, settings
        self.update_freq, self.scope = update_freq, scope
        self.state: MutableMapping[Tensor, dict[str, Any]] = defaultdict(dict)
        self.ranks: Ranks | None = None
        self.blocks: dict[str, Block[State]] = {}
        self._make_state = make_state
        # Groups of what may be preconditioned; None: all of the model.
        self._groups: list[Mapping[str, Any]] | None
        self._groups = None if params is None else [{"params": list(params)}]
        self._layers, self._seen = layers_of(model), list[object]()
        self._told: set[str] = set()  # what has been said: parameters, and (facts)
        # Whether a layer has joined, or a refresh that was due could not be made.
        self._incomplete = False
        rule = gauss_legendre(4) if quadrature is None else quadrature
        self.collector = Collector(
            {}, rule, accumulator, scope, curvature_batch, counts=self.counts_rows
        )
        self._look()
        if not self.blocks:
            kinds = sorted({type(m).__name__ for m in model.modules() if not list(m.children())})
            raise ValueError(
                "no layer to precondition: the model has no nn.Linear or nn.Conv2d with a trainable"
                f" weight among the parameters given (it is made of {', '.join(kinds)}); use the"
                " base optimizer alone"
            )
        self.collector.arm()
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
    def check(self, settings: Mapping[str, Any]) -> None:
        """Raise ValueError if a setting of a parameter group is out of range."""

    @property
    def due(self) -> bool:
        """Whether the coming step takes in new curvature."""
        return self.collector.armed

    @property
    def takes_in(self) -> bool:
        """Whether the present step takes in new curvature: it is due, and there is a gradient."""
        blocks = self.blocks.values()
        return self.due and any(block.weight.grad is not None for block in blocks)

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
        found = {
            name: self.own_part(block, sums.pop(name).factors())
            for name, block in self.blocks.items()
            if name in sums and name not in self.plain
        }
        self._incomplete = False
        for factors in found.values():
            factors.unscale(loss_scale)
        if self.ranks is not None:
            weights = {name: block.weight for name, block in self.blocks.items()}
            found = self.ranks.factors(found, weights)
        if self.scope == "all" or not found:  # else those outside have none by choice
            warn_of_missing(
                self.blocks.values(), found, self.plain, self.collector.only_differentiated
            )
        self._given = set(found)
        return found

    def own_part(self, block: Block[State], factors: Any) -> Any:
        """Return the factors without the bias's part if the bias is not to be changed."""
        left_out = has_bias(block.layer) and not block.own_bias
        return factors.without_bias() if left_out else factors

    def rows(self) -> dict[str, int]:
        """Return the rows that each block's gradient is a mean over, on all ranks, where known."""
        found = {name: sum(rows.values()) for name, rows in self.collector.rows.items()}
        return found if self.ranks is None else self.ranks.rows(found, list(self.blocks))

    def with_gradient(
        self, param_groups: Sequence[Mapping[str, Any]]
    ) -> list[tuple[Block[State], Mapping[str, Any]]]:
        """Return the blocks to precondition, each with the settings of its group."""
        self._look()
        own = {}
        for group in param_groups:
            settings = {**self.settings, **group}
            self.check(settings)
            own.update(dict.fromkeys(map(id, group["params"]), settings))
        return [
            (block, own.get(id(block.weight), self.settings))
            for block in self.blocks.values()
            if block.weight.grad is not None and block.state.ready and block.name not in self.plain
        ]

    def advance(self) -> None:
        """End a step: count it, and gather curvature for the next one if that takes it in."""
        self._warn_of_replicas()
        self.steps += 1
        failed = [b for b in self.blocks.values() if b.name in self._given and not b.state.ready]
        self._incomplete |= self.due and (bool(failed) or not self.takes_in)
        warn_of_failed(failed)
        self.collector.clear()
        self.resume()

    def _warn_of_replicas(self) -> None:
        if self.ranks is not None or "(ranks)" in self._told:
            return
        self._told.add("(ranks)")
        ranks = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        if ranks > 1:
            name = type(self).__name__
            advice = "call optimizer.distribute() before the first step"
            if self.collector.accumulator not in (Accumulator, ThinSums):
                advice = f"{name} cannot average it, so train with one process"
            warnings.warn(
                f"there are {ranks} ranks, and each gathers curvature of its own rows alone:"
                f" replicas of one model drift apart; {advice}",
                RuntimeWarning,
                stacklevel=6,
            )

    def follow(
        self,
        param_groups: Sequence[Mapping[str, Any]],
        state: MutableMapping[Tensor, dict[str, Any]],
    ) -> None:
        """Precondition the members of an optimizer's groups, and keep all there is in its state."""
        self._groups = list(param_groups)
        if state is not self.state:
            self.state, self._seen = state, []
            self._look()
            self._incomplete = not self.curvature
            self.counts.update(self.restored_counts(self.counts))

    def _look(self) -> None:
        """Find the blocks anew if other weights are trained, or other groups, than the last time.

        A layer that is new in the model shows by a group for it, or when curvature is due.
        """
        if self._seen == self._sight():
            return
        self._layers = layers_of(self.model)
        self._seen = self._sight()
        groups = self._groups
        params = list(self.model.parameters()) if groups is None else members(groups)
        old, watched = self.blocks, self.collector.layers
        state_of = partial(_state_of, self.state, self._make_state)  # no reference to this object
        self.blocks, keys = find_blocks(self._layers, params, state_of)
        before = {layer: old[name].weight for layer, name in watched.items()}
        now = {layer: self.blocks[name].weight for layer, name in keys.items()}
        self._incomplete |= any(before.get(layer) is not weight for layer, weight in now.items())
        warned = {id(block.weight) for block in old.values() if block.warned}
        for block in self.blocks.values():
            state_of(block.weight)  # from now on there is one
            block.warned = id(block.weight) in warned
        if keys != watched or self._incomplete:
            self.collector.watch(keys)
        names = untreated(self.model, params, self.blocks.values())
        names = [name for name in names if name not in self._told]
        self._told.update(names)
        if names and self.scope == "all":
            method = type(self).__name__.removesuffix("Preconditioner") or "SNOpt"
            warnings.warn(
                f"{method} does not treat {', '.join(names)}: the plain update for these",
                UserWarning,
                stacklevel=5,
            )

    def _sight(self) -> list[object]:
        """Return what decides on the blocks, for a quick comparison."""
        groups = [(id(group["params"]), len(group["params"])) for group in self._groups or ()]
        return [*groups, *(id(trained_weight(layer)) for _, layer in self._layers)]

    @property
    def counts(self) -> dict[str, Any]:
        """Numbers about all blocks, such as steps taken; an entry of the first parameter's."""
        for entries in self.state.values():
            if "counts" in entries:
                return entries["counts"]  # type: ignore[no-any-return]
        first = next(iter(self.state or (b.weight for b in self.blocks.values())))
        return self.state[first].setdefault("counts", dict(self.COUNTS))  # type: ignore[no-any-return]

    def _wants_curvature(self) -> bool:  # for the step with number self.steps
        return bool(self.steps % self.update_freq == 0)

    def resume(self) -> None:
        """Gather curvature from now on if the coming step takes it in."""
        if self._incomplete or self._wants_curvature():
            self._layers = layers_of(self.model)
            self._look()
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
        weights = [block.weight for block in self.blocks.values()]
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
        self._look()
        if not self.due and (self._incomplete or self._wants_curvature()):
            self.resume()

    def state_dict(self) -> dict[str, Any]:
        """Return the counts and every block's state: tensors and numbers only."""
        layers = {name: block.state.state_dict() for name, block in self.blocks.items()}
        return {**self.counts, "layers": layers}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state of :meth:`state_dict`.

        Raises:
            ValueError: if it belongs to a model with other layers; nothing has changed then.
        """
        weights = self.weights_of(state["layers"])
        found = {w: self.restored(w, state["layers"][name]) for name, w in weights.items()}
        counts = self.restored_counts(state)
        for weight, own in found.items():
            self.state[weight]["preconditioner"] = own
        self.counts.update(counts)
        self._incomplete = not self.curvature
        self.resume()

    def weights_of(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Return the weights of all blocks; raise ValueError if ``names`` are others."""
        missing = sorted(self.blocks.keys() ^ set(names))
        if missing:
            raise ValueError(
                f"the state is another model's; layers that only one has: {', '.join(missing)}"
            )
        return {name: block.weight for name, block in self.blocks.items()}

    def restored_counts(self, saved: Mapping[str, Any]) -> dict[str, Any]:
        """Return saved counts, those that a former version did not have at their start."""
        return {name: saved.get(name, start) for name, start in self.COUNTS.items()}

    def restored(self, weight: Tensor, saved: Mapping[str, Any]) -> State:
        """Return a new state of a weight, from what its ``state_dict`` returned.

        Raises:
            ValueError: if it is another method's, incomplete, or of another size.
        """
        own = self._make_state()
        try:
            own.load_state_dict(dict(saved), weight.device)
        except KeyError as error:
            raise ValueError(
                f"the state is another method's, or incomplete: it has no entry {error}"
            ) from error
        if saved.get("ready", own.ready) and not own.ready:
            raise ValueError(INCOMPLETE)
        layers = ((name, m) for name, m in self._layers if m._parameters.get("weight") is weight)
        for name, layer in layers:
            if own.ready:
                groups, out, columns = own.shape
                rows, least = weight.shape[0], weight_columns(layer)
                most = least if layer.bias is None else least + 1
                if (groups, groups * out) != (groups_of(layer), rows) or not (
                    least <= columns <= most
                ):
                    raise ValueError(
                        f"the state's layer {name} is of another size: its matrix has"
                        f" {groups * out} × {columns} entries, this model's {rows} × {least} and a"
                        " bias"
                    )
        return own

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Watch the layers of a copied or unpickled model."""
        self.__dict__.update(state)
        self._seen = []
        self.resume()


def _state_of(
    state: MutableMapping[Tensor, dict[str, Any]], make: Callable[[], State], weight: Tensor
) -> State:
    """Return the method's state of a weight; there is one from now on."""
    entries = state[weight]
    if "preconditioner" not in entries:
        entries["preconditioner"] = make()
    found: State = entries["preconditioner"]
    return found


def split_options(
    method: type[Layerwise[Any]], options: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the options that a method or a base of it takes, and all others."""
    kinds = [one for one in method.__mro__ if issubclass(one, Layerwise)]
    known = {name for one in kinds for name in inspect.signature(one).parameters}
    own = {name: value for name, value in options.items() if name in known}
    return own, {name: value for name, value in options.items() if name not in known}
