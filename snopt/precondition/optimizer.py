"""A preconditioner before another optimizer, as one optimizer of torch."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from snopt.curvature.likelihood import CURVATURES, loss_vectors
from snopt.precondition.weights import INCOMPLETE, check_model, members
from snopt.validate import check_choice, check_count, check_number

if TYPE_CHECKING:
    from snopt.precondition.base import Layerwise

OWN_STATE = ("preconditioner", "counts", "gradient_momentum", "average")
"""What an optimizer here keeps for a parameter; all other entries are its base optimizer's."""


Method = TypeVar("Method", bound="Layerwise[Any]")


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
        with self.register_state_dict_post_hook(lambda _, s: self._packed(s), prepend=True):
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
            with self.register_load_state_dict_pre_hook(lambda _, s: self._unpacked(s)):
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
            former = {**state_dict["preconditioner"], "rejected": state_dict.get("rejected", 0)}
            state.setdefault(keys[0], {})["counts"] = former
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
    kind: Callable[..., Optimizer] = torch.optim.SGD if base is None else base
    if base is None:
        options = {**options, "momentum": momentum}
    elif momentum:
        raise ValueError("momentum is SGD's; pass the base optimizer's own setting instead")
    if weight_decay:
        options = {**options, "weight_decay": weight_decay}

    def make(groups: list[dict[str, Any]]) -> Optimizer:
        for group in groups:
            for name in settings.keys() & group.keys():
                check_number(name, group[name], "[0, inf)")
        return kind(groups, lr=lr, **options)

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
