"""What layer-wise second-order optimizers share.

A :class:`Layerwise` preconditioner watches a model's layers, knows when to gather curvature, and
hands out what was gathered; each method derives from it and has its own ``step``.
:class:`PreconditionedOptimizer` puts it before a base optimizer.
"""

from __future__ import annotations

import inspect
import warnings
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from snopt.curvature.collector import Collector
from snopt.curvature.factors import Accumulator, Sums, ThinSums
from snopt.curvature.layers import groups_of, has_bias, weight_columns
from snopt.curvature.likelihood import CURVATURES, loss_vectors
from snopt.curvature.quadrature import Quadrature, gauss_legendre
from snopt.precondition.ranks import Ranks
from snopt.precondition.weights import (
    Block,
    check_model,
    find_blocks,
    layers_of,
    trained_weight,
    untreated,
    warn_of_failed,
    warn_of_missing,
)
from snopt.validate import check_choice, check_count, check_number

SCOPES = ("all", "ode")

OWN_STATE = ("preconditioner", "counts", "gradient_momentum", "average")
"""What an optimizer here keeps for a parameter; all other entries are its base optimizer's."""


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
        return self.steps % self.update_freq == 0

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


INCOMPLETE = (
    "the state is incomplete: torch.distributed.checkpoint fills in what an optimizer has already,"
    " and a new one has no factors yet; turn the checkpoint into a file with"
    " torch.distributed.checkpoint.format_utils.dcp_to_torch_save and load that"
)


Method = TypeVar("Method", bound=Layerwise[Any])


class PreconditionedOptimizer(Optimizer, Generic[Method]):
    """Preconditions the gradients, then lets a base optimizer take the step.

    ``param_groups`` and ``state`` hold everything. The base optimizer is given both for its step
    alone, and only what is its own: a name that it shares with the preconditioner's settings (SGD's
    ``momentum``, RMSprop's ``alpha``) is the preconditioner's in the groups, and the base's goes
    there by ``momentum_of_base``, ``alpha_of_base``.

    Args:
        preconditioner: the layer-wise method, on the same parameters.
        groups: the parameter groups; changed in place.
        make_base: makes the optimizer of the step itself from the groups.
        curvature: ``"empirical"``, ``"mc"`` or ``"ggn"``, as for :class:`snopt.SNOpt`.
        samples: labels drawn for each row, with ``mc``.

    Raises:
        ValueError: if the base optimizer evaluates the loss more than once in a step, or an
            argument is out of range.
    """

    def __init__(
        self,
        preconditioner: Method,
        groups: list[dict[str, Any]],
        make_base: Callable[[list[dict[str, Any]]], Optimizer],
        *,
        curvature: str = "empirical",
        samples: int = 1,
    ) -> None:
        """Make the base optimizer and take over its parameter groups and state."""
        check_choice("curvature", curvature, CURVATURES)
        check_count("samples", samples)
        self.curvature_type, self.samples = curvature, samples
        preconditioner.collector.paused = curvature != "empirical"  # until gather() is called
        self.preconditioner = preconditioner
        self.loss_scale: float | None = None
        own = [self._put_aside(group) for group in groups]
        self.base = make_base(groups)
        closure = inspect.signature(self.base.step).parameters.get("closure")
        if closure is not None and closure.default is inspect.Parameter.empty:
            raise ValueError(
                f"{type(self.base).__name__} evaluates the loss more than once in a step and"
                " cannot be the base optimizer"
            )
        groups, state = self.base.param_groups, self.base.state
        for group, values in zip(groups, own, strict=True):
            self._put_back(group, values)
        super().__init__(groups, {**self.base.defaults, **preconditioner.settings})
        for p, entries in state.items():
            self.state[p].update(entries)
        preconditioner.follow(self.param_groups, self.state)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group; its layers are preconditioned from the next refresh on.

        Raises:
            ValueError: if a setting is out of range, or the base optimizer refuses the group.
        """
        self.preconditioner.check({**self.preconditioner.settings, **param_group})
        values = self._put_aside(param_group)
        self.base.param_groups = self.param_groups
        self.base.add_param_group(param_group)
        self._put_back(param_group, {**self.preconditioner.settings, **values})
        for p in param_group["params"]:
            self.state.setdefault(p, {})  # tools that save or load look for every parameter's

    def _put_aside(self, group: dict[str, Any]) -> dict[str, Any]:
        """Leave a group with the base's settings alone; return the preconditioner's."""
        names = self.preconditioner.settings
        own = {name: group.pop(name) for name in names if name in group}
        for name in names:
            if f"{name}_of_base" in group:
                group[name] = group.pop(f"{name}_of_base")
        return own

    def _put_back(self, group: dict[str, Any], own: Mapping[str, Any]) -> None:
        """Undo :meth:`_put_aside`."""
        for name in self.preconditioner.settings:
            if name in group:
                group[f"{name}_of_base"] = group.pop(name)
        group.update(own)

    @contextmanager
    def _base_alone(self) -> Iterator[None]:
        """Let the base optimizer work on groups and state, without what is not its own."""
        groups, state = self.param_groups, self.state
        self.base.param_groups, self.base.state = groups, state
        own = [self._put_aside(group) for group in groups]
        # Bases set up the state of a parameter where they find none.
        kept = [(s, {k: s.pop(k) for k in OWN_STATE if k in s}) for s in state.values()]
        try:
            yield
        finally:
            for group, values in zip(groups, own, strict=True):
                self._put_back(group, values)
            for entries, values in kept:
                entries.update(values)

    def _precondition(self, loss_scale: float | Tensor = 1.0) -> None:
        self.preconditioner.follow(self.param_groups, self.state)
        self.preconditioner.step(self.param_groups, loss_scale=loss_scale)

    def _step_base(self) -> None:
        step = type(self.base).step
        with self._base_alone():
            # Past torch's wrapper: hooks for all optimizers have run for this one already.
            getattr(step, "__wrapped__", step)(self.base)

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
            self._precondition(scale)
            self._step_base()
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
        """Return what a copy needs; as for any optimizer of torch, its hooks are not copied."""
        # Private attributes are torch's, and so is a step that schedulers have wrapped.
        own = {k: v for k, v in self.__dict__.items() if k[0] != "_" and k not in ("base", "step")}
        base = {
            k: v for k, v in self.base.__getstate__().items() if k not in own or k == "defaults"
        }
        return {**own, "base": (type(self.base), base)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over loaded groups and states, or everything of a copy."""
        kind, rest = state.get("base", (None, {}))
        if kind is not None:
            self.base = kind.__new__(kind)
        super().__setstate__({k: v for k, v in state.items() if k != "base"})
        with self._base_alone():
            own = {"param_groups": self.param_groups, "state": self.state}
            self.base.__setstate__({**rest, **own})
        self.preconditioner.follow(self.param_groups, self.state)
        self.preconditioner.resume()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset the gradients, and the curvature gathered with them."""
        super().zero_grad(set_to_none)
        self.preconditioner.follow(self.param_groups, self.state)
        self.preconditioner.clear()

    def state_dict(self) -> dict[str, Any]:
        """Return groups and states as any optimizer of torch: tensors and numbers only.

        The state of a weight has the entry ``"preconditioner"``, that of every parameter
        ``"counts"``.
        """
        with self.register_state_dict_post_hook(type(self)._packed, prepend=True):
            return super().state_dict()

    def _packed(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        counts = dict(self.preconditioner.counts)
        state = {k: dict(entries) for k, entries in state_dict["state"].items()}
        for entries in state.values():
            entries.pop("counts", None)
            if "preconditioner" in entries:
                own = entries.pop("preconditioner")
                facts = {"ready": own.ready, "others": len(entries)}
                entries["preconditioner"] = {**_present(own.state_dict()), **facts}
            entries["counts"] = counts  # with every parameter: one without entries would be lost
        return {**state_dict, "state": state}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a state of :meth:`state_dict`, or one of a former version.

        Raises:
            ValueError: if the state is another optimizer's or another model's; nothing has changed
                then.
        """
        before = {"state": self.state, "param_groups": self.param_groups}
        try:
            with self.register_load_state_dict_pre_hook(type(self)._unpacked):
                super().load_state_dict(state_dict)
        except Exception:
            if self.state is not before["state"]:
                self.__setstate__(before)
            raise

    def _unpacked(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """Return a state dict with states of blocks in place of what they were saved as."""
        keys = [key for group in state_dict["param_groups"] for key in group["params"]]
        params = dict(zip(keys, members(self.param_groups), strict=False))
        state = {key: dict(entries) for key, entries in state_dict["state"].items()}
        if "preconditioner" in state_dict:  # a former version: beside the state, by layer
            layers = state_dict["preconditioner"]["layers"]
            weights = self.preconditioner.weights_of(layers)
            key_of = {id(p): key for key, p in params.items()}
            for name, weight in weights.items():
                entries = state.setdefault(key_of[id(weight)], {})
                entries["preconditioner"] = layers[name]
            counts = {**state_dict["preconditioner"], "rejected": state_dict.get("rejected", 0)}
            del counts["layers"]
            state.setdefault(keys[0], {})["counts"] = counts
        counts = [entries["counts"] for entries in state.values() if "counts" in entries]
        if not counts:
            raise ValueError(f"the state is not {type(self).__name__}'s: it has no entry 'counts'")
        for key, entries in state.items():
            entries.pop("counts", None)
            if "preconditioner" in entries and key in params:
                saved = entries.pop("preconditioner")
                if len(entries) < saved.get("others", 0):
                    raise ValueError(INCOMPLETE)
                entries["preconditioner"] = self.preconditioner.restored(params[key], saved)
        state.setdefault(keys[0], {})["counts"] = self.preconditioner.restored_counts(counts[0])
        pairs = zip(state_dict["param_groups"], self.param_groups, strict=False)
        groups = [self._completed(dict(saved), present) for saved, present in pairs]
        groups += state_dict["param_groups"][len(groups) :]
        return {"state": state, "param_groups": groups}

    def _completed(self, saved: dict[str, Any], present: Mapping[str, Any]) -> dict[str, Any]:
        """Return a saved group with the present values of settings that it does not have."""
        for name in self.preconditioner.settings:
            if f"{name}_of_base" in present and f"{name}_of_base" not in saved:
                # A former version gave the two one place, which was the base's.
                saved[f"{name}_of_base"] = saved.pop(name)
        own = self.preconditioner.settings
        return {**{name: present[name] for name in own if name in present}, **saved}


def _present(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return a state without entries that are None, at any depth."""
    return {k: _present(v) if isinstance(v, dict) else v for k, v in state.items() if v is not None}


def split_options(
    method: type[Layerwise[Any]], options: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the options that a method or a base of it takes, and all others."""
    kinds = [one for one in method.__mro__ if issubclass(one, Layerwise)]
    known = {name for one in kinds for name in inspect.signature(one).parameters}
    own = {name: value for name, value in options.items() if name in known}
    return own, {name: value for name, value in options.items() if name not in known}


def base_step(
    base: Callable[..., Optimizer] | None,
    lr: float,
    momentum: float,
    weight_decay: float,
    options: dict[str, Any],
) -> Callable[[list[dict[str, Any]]], Optimizer]:
    """Return what makes the optimizer of class ``base``, SGD by default, from parameter groups.

    Raises:
        ValueError: if a value is out of range, or momentum is given for another base than SGD.
    """
    settings = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
    for name, value in settings.items():
        check_number(name, value, "[0, inf)")
    if base is None:
        base, options = torch.optim.SGD, {**options, "momentum": momentum}
    elif momentum:
        raise ValueError("momentum is SGD's; pass the base optimizer's own setting instead")
    if weight_decay:
        options = {**options, "weight_decay": weight_decay}
    made = partial(base, lr=lr, **options)

    def make(groups: list[dict[str, Any]]) -> Optimizer:
        for group in groups:
            for name in settings.keys() & group.keys():
                check_number(name, group[name], "[0, inf)")
        return made(groups)

    return make


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
    """Return all parameters of parameter groups, which may come with names."""
    entries = (p for group in groups for p in group["params"])
    return [p[1] if isinstance(p, tuple) else p for p in entries]
