"""The integration time of an ODE block as a parameter.

Liu, Chen, Theodorou (NeurIPS 2021), on optimising the integration time. A block integrates from t0
to t1. T = |t1 - t0| is its horizon, z(T) the state at its end, F the velocity there in the
direction of integration (-dz/dt where t1 < t0), Φ the loss as a function of z(T). A horizon cost
makes time expensive:

    J(T, θ) = c/2 T² + Φ(z(T; θ))                                                            (H1)

First order, exact in either direction of time: ∂z(T)/∂T = F, so

    s = Fᵀ Φ_z,        Q_T = ∂J/∂T = c T + s                                                 (H2)

Second order: Gauss-Newton as in Theorem 1 (z_TT and z_Tθ are dropped) with the empirical curvature
of Proposition 2, R = 1 (Φ_z Φ_zᵀ for Φ_zz). With Q_u = ∂Φ/∂θ, what backpropagation leaves in
``.grad`` of the field's parameters,

    Q_TT = c + Fᵀ Φ_zz F       = c + s²                                                      (H3)
    Q_Tθ = Fᵀ Φ_zz ∂z(T)/∂θ    = s (∂z(T)/∂θ)ᵀ Φ_z = s Q_u                                   (H4)

Both are exact where Φ is the negative logarithm of a linear function of z(T) and z is linear in
(T, θ). The loss is the mean over a batch, so s, summed over the batch, is the batch mean already,
and (H3) squares this mean: the batch is one state with one terminal loss.

The quadratic model of J, minimised over δT *given* the step δθ that an optimizer has just taken, is
the **feedback** step; the **baseline** is gradient descent:

    feedback:  δT = -η (Q_T + Q_Tθ·δθ) / Q_TT        baseline:  δT = -η Q_T                  (H5)

**Units of c.** The authors' release divides s by the batch size B once more, so that its costs
(4e-4 to 6e-4) are those of time against a B-th of the mean loss. Multiplied through with B, its
policy is (H5) with the exact s and

    Q_T = c B T + s,        Q_TT = c B + s² / B                                             (H6)

This is what ``per_sample=True``, the default, takes in place of (H2) and (H3): c is a cost per
sample.

**Averages.** Q_T and Q_TT are exponential averages over all steps; s and Q_u in the feedback are
the last step's, as in the release. Its own baseline multiplies the cost by F as well, which is not
the gradient of J; ``mode="baseline_released"`` has it for comparison, the sum over the whole batch:

    δT = -η Σ F (Φ_z + c T) / B                                                              (H7)

Q_Tθ·δθ = s (Q_u·δθ) takes the gradient *before* any preconditioning, momentum or weight decay, and
the difference of the parameters across the optimizer's step. Q_u·δθ is the change of the loss that
this step brings to first order: progress that T need not make.
"""

from __future__ import annotations

import math
import warnings
import weakref
from collections.abc import Callable, Mapping
from dataclasses import astuple, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from snopt.curvature.collector import WeakHook, on_accumulation
from snopt.curvature.recording import backward_pass
from snopt.linalg import at_least_float32
from snopt.solve.field import parts_of
from snopt.solve.ode_block import ODEBlock
from snopt.validate import check_choice, check_count, check_flag, check_number

MODES = ("fixed", "baseline", "baseline_released", "feedback")


@dataclass(frozen=True)
class HorizonModel:
    """Derivatives of J along T, of one step or averaged over steps.

    Attributes:
        s: Fᵀ Φ_z, the loss per unit of time at the end of the block.
        Q_T: (H2) or (H6); with ``baseline_released`` what (H7) has in its place.
        Q_TT: (H3) or (H6), at least c.
    """

    s: float
    Q_T: float
    Q_TT: float

    @classmethod
    def at(cls, T: float, s: float, cost: float, batch: int = 1) -> HorizonModel:
        """Return the model at horizon ``T`` under the cost c; ``batch`` is B of (H6), or 1."""
        return cls(s, cost * batch * T + s, cost * batch + s * s / batch)

    def averaged(self, past: HorizonModel | None, decay: float) -> HorizonModel:
        """Return the exponential average, ``decay`` times the past and the rest this; or this."""
        if past is None:
            return self
        pairs = zip(astuple(past), astuple(self), strict=True)
        return HorizonModel(*(decay * old + (1.0 - decay) * new for old, new in pairs))

    def step(self, mode: str, lr: float, feedback: float) -> float:
        """Return δT by (H5) or (H7), where ``lr`` is η and ``feedback`` is Q_Tθ·δθ."""
        return -lr * ((self.Q_T + feedback) / self.Q_TT if mode == "feedback" else self.Q_T)


class IntegrationTime:
    """Trains the integration time of an ODE block alongside an optimizer's parameters.

    It hangs on the optimizer's steps, so the training loop stays what it is::

        optimizer = SNOpt(model, lr=0.02)  # or any other torch.optim.Optimizer
        horizon = IntegrationTime(model.ode, optimizer, mode="feedback", cost=5e-4)

    On every step it reads the gradient at the block's output and evaluates the field once there;
    after every ``every``-th step of the optimizer it moves ``block.t[-1]`` by (H5). The loss must
    be the mean over the batch; ``loss.backward()`` comes before ``optimizer.step()``.

    The model's ``state_dict`` carries the time, :meth:`state_dict` everything else. With loss
    scaling set ``horizon.loss_scale = scaler.get_scale()`` before ``scaler.step(optimizer)``.

    Do not use it where the end of the interval is given by the data (a time series), or with an
    event solve, whose end time is a function of the state.

    Args:
        block: the block; it must be called with its own times.
        optimizer: whose steps count, and whose parameter step the feedback sees.
        mode: ``"feedback"``, ``"baseline"``, ``"baseline_released"``, or ``"fixed"`` (nothing
            moves).
        lr: η > 0 (paper: 0.1).
        cost: c of the horizon cost (paper, on CIFAR-10: 6e-4 from t1 = 1, 4e-4 from 0.05). The
            baseline may have 0, feedback needs more.
        every: optimizer steps from one update to the next, at least 1 (paper: 50).
        minimum: smallest horizon T > 0 that an update may lead to.
        decay: weight of the past, from step to step, in the averages of Q_T and Q_TT, in [0, 1).
        per_sample: whether c is in units of the release, (H6), which need the first dimension of
            the state to be the batch; otherwise J has c/2 T² and nothing depends on the batch.

    Attributes:
        loss_scale: what the loss was multiplied with for the backward pass.
        steps: optimizer steps so far.
        updates: updates of t1 so far.

    Raises:
        TypeError: if ``block`` is no ODEBlock or ``optimizer`` no optimizer.
        ValueError: if an argument is out of range, or the end of the block cannot be moved: it has
            more than two times, returns all states, or its times have a gradient.
    """

    def __init__(
        self,
        block: ODEBlock,
        optimizer: Optimizer,
        *,
        mode: str = "feedback",
        lr: float = 0.1,
        cost: float = 5e-4,
        every: int = 50,
        minimum: float = 0.1,
        decay: float = 0.99,
        per_sample: bool = True,
    ) -> None:
        """Hook the block and the optimizer."""
        _check_block(block)
        if not isinstance(optimizer, Optimizer):
            raise TypeError(
                f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}"
            )
        check_choice("mode", mode, MODES)
        check_number("lr (η)", lr, "(0, inf)")
        check_number("cost (c of the horizon cost)", cost, "[0, inf)")
        if mode == "feedback" and cost == 0:
            raise ValueError("cost must be above 0 for feedback, which divides by it, got 0")
        check_count("every", every)
        check_number("minimum (the smallest horizon)", minimum, "(0, inf)")
        check_number("decay", decay, "[0, 1)")
        check_flag("per_sample", per_sample)
        self.block, self.mode = block, mode
        self.lr, self.cost, self.every = lr, cost, every
        self.minimum, self.decay, self.per_sample = minimum, decay, per_sample
        self.loss_scale = 1.0
        self.steps = self.updates = 0
        self._since = 0  # steps since the last update
        self._model: HorizonModel | None = None
        self._feedback = 0.0
        self._warned: set[str] = set()
        self._optimizer = weakref.ref(optimizer)
        # Fᵀ Φ_z and the sum of F, together and of passes that have added to no gradient yet
        self._sums: Tensor | None = None
        self._arriving: dict[int, Tensor] = {}
        self._added: set[int] = set()  # passes that have
        self._rows: dict[int, int] = {}  # of the batch, by pass
        self._handles: list[RemovableHandle] = []
        self._before: list[tuple[Tensor, Tensor, Tensor]] = []
        if mode != "fixed":
            handle = block.register_forward_hook(WeakHook(self), with_kwargs=True)
            weakref.finalize(self, handle.remove)
            # The optimizer keeps this object alive, nobody else has to.
            optimizer.register_step_pre_hook(self._before_step)
            optimizer.register_step_post_hook(self._after_step)

    @property
    def t1(self) -> float:
        """The time at which the block ends."""
        return float(self.block.t[-1])

    @property
    def due(self) -> bool:
        """Whether the coming optimizer step is one after which t1 moves."""
        return self.mode != "fixed" and self._since + 1 >= self.every

    @property
    def metrics(self) -> dict[str, float]:
        """``horizon/t1`` and, from the first step on, averages and the last feedback.

        ``horizon/Q_T``, for feedback also ``horizon/Q_TT`` and ``horizon/feedback`` (Q_Tθ·δθ).
        """
        found = {"horizon/t1": self.t1}
        if self._model is not None:
            found["horizon/Q_T"] = self._model.Q_T
            if self.mode == "feedback":
                found |= {"horizon/Q_TT": self._model.Q_TT, "horizon/feedback": self._feedback}
        return found

    def state_dict(self) -> dict[str, Any]:
        """Return counters and averages: numbers and text only; t1 is in the model's state."""
        return {
            "mode": self.mode,
            "steps": self.steps,
            "updates": self.updates,
            "since": self._since,
            "averages": None if self._model is None else list(astuple(self._model)),
            "feedback": self._feedback,
            "warned": sorted(self._warned),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state of :meth:`state_dict`.

        Raises:
            ValueError: if it is that of another mode.
        """
        if state["mode"] != self.mode:
            raise ValueError(f"the state is of mode {state['mode']!r}, this is {self.mode!r}")
        self.steps, self.updates = int(state["steps"]), int(state["updates"])
        self._since = int(state["since"])
        averages = state["averages"]
        self._model = None if averages is None else HorizonModel(*map(float, averages))
        self._feedback = float(state["feedback"])
        self._warned = set(state["warned"])

    def on_forward(
        self,
        block: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: Tensor | tuple[Tensor, ...],
    ) -> None:
        """Wait for Φ_z at the block's output."""
        if block is not self.block:  # a copy
            return
        t = args[1] if len(args) > 1 else kwargs.get("t")
        # A forward pass inside a backward pass repeats one that was seen already.
        if not torch.is_grad_enabled() or backward_pass() != -1:
            return
        parts = parts_of(output)
        if not any(part.requires_grad for part in parts):
            return
        if t is not None:
            raise ValueError(
                "IntegrationTime moves the block's own t1, but the block was called with other"
                " times: leave out the argument t, or use mode='fixed'"
            )
        if self._gradients_are_zero():
            # What arrived before went into gradients that were thrown away.
            self._sums, self._rows = None, {}
        if not self._handles:
            self._handles = [
                on_accumulation(p, self._on_accumulated)
                for p in {*self._parameters(), *self.block.parameters()}
                if p.requires_grad and p.is_leaf
            ]
        F = parts_of(self.block.velocity(self.t1, output))
        for part, rate in zip(parts, F, strict=True):
            if part.requires_grad:
                part.register_hook(self._on_gradient(rate))

    def _on_gradient(self, F: Tensor) -> Callable[[Tensor], None]:
        """Return the hook that adds Fᵀ Φ_z of one use of the block to its pass's s."""
        step = self.steps

        def hook(gradient: Tensor) -> None:
            if step == self.steps:
                task = backward_pass()
                with torch.no_grad():
                    found = [(F * at_least_float32(gradient)).sum(dtype=torch.float64)]
                    found.append(F.sum(dtype=torch.float64))
                    sums = torch.stack(found)
                self._arriving[task] = self._arriving.get(task, 0.0) + sums
                self._rows[task] = F.shape[0] if F.ndim else 1
                self._take_in(task)

        return hook

    def _on_accumulated(self) -> None:
        """Remember that the present pass adds to the optimizer's gradients."""
        self._added.add(backward_pass())
        self._take_in(backward_pass())

    def _take_in(self, task: int) -> None:
        # Other passes belong to an attack, a penalty, or a quantity that is part of the loss.
        if task in self._added and task in self._arriving:
            sums = self._arriving.pop(task)
            self._sums = sums if self._sums is None else self._sums + sums

    def _parameters(self) -> list[Tensor]:
        optimizer = self._optimizer()
        groups = [] if optimizer is None else optimizer.param_groups
        return [p for group in groups for p in group["params"]]

    def _gradients_are_zero(self) -> bool:
        gradients = (p.grad for p in self._parameters())
        return not any(g is not None and bool(g.any()) for g in gradients)

    @torch.no_grad()
    def _before_step(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """Keep gradient and parameters of the field: the step may overwrite both."""
        # The first of torch's positional arguments is the optimizer itself.
        if (args[1] if len(args) > 1 else kwargs.get("closure")) is not None:
            raise ValueError(
                "IntegrationTime needs the gradient before the step: call loss.backward() and then"
                " optimizer.step() without a closure"
            )
        if self._sums is None:
            return
        # Set by a GradScaler whose optimizer unscales for itself, as SNOpt does.
        pending = getattr(optimizer, "grad_scale", None)
        self._sums[0] /= self.loss_scale if pending is None else pending
        if self.mode == "feedback" and self.due:
            self._before = [
                (p, p.clone(), p.grad.clone() if pending is None else p.grad / pending)
                for p in self.block.func.parameters()
                if p.grad is not None
            ]

    @torch.no_grad()
    def _after_step(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """Count the step, average what it saw, and move t1 if it is time."""
        self.steps += 1
        self._since += 1
        moves = self._since >= self.every
        if self._sums is None:
            if moves:
                self._warn(
                    "data",
                    "no gradient has arrived at the output of the ODE block: its integration time"
                    " stays as it is until loss.backward() passes through the block",
                )
        elif math.isfinite((sums := self._sums.tolist())[0]):
            own = self._seen(*sums)
            self._model = own.averaged(self._model, self.decay)
            if moves:
                terms = [(g * (p - was)).sum(dtype=torch.float64) for p, was, g in self._before]
                self._feedback = own.s * float(sum(terms))  # (H4)
                self._move(self._model)
                self._since = 0
        self._sums, self._before = None, []
        self._arriving, self._added, self._rows = {}, set(), {}
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _seen(self, s: float, F: float) -> HorizonModel:
        """Return the model of this step alone, from sums with F = dz/dt."""
        sign, T = self._interval()
        batch = sum(rows for task, rows in self._rows.items() if task in self._added)
        own = HorizonModel.at(T, sign * s, self.cost, batch if self.per_sample else 1)
        if self.mode == "baseline_released":
            own = replace(own, Q_T=(own.s + self.cost * T * sign * F) / batch)
        return own

    def _interval(self) -> tuple[float, float]:
        """Return the direction of time, 1 or -1, and T."""
        length = self.t1 - float(self.block.t[0])
        return math.copysign(1.0, length), abs(length)

    def _move(self, model: HorizonModel) -> None:
        """Move t1 by (H5)."""
        t0, (sign, T) = float(self.block.t[0]), self._interval()
        wanted = T + model.step(self.mode, self.lr, self._feedback)
        if wanted < self.minimum:
            self._warn(
                "bound",
                f"the horizon |t1 - t0| would have gone from {T:.4g} to {wanted:.4g} and is held at"
                f" its lower bound {self.minimum:g}; a smaller horizon cost, lr or minimum, or a"
                " longer start, would let it move (said once)",
            )
        # A new tensor: the graph of a loss that is still alive may hold the old one.
        times = at_least_float32(self.block.t.detach()).clone()
        times[-1] = t0 + sign * max(wanted, self.minimum)
        self.block.t = times
        self.updates += 1

    def _warn(self, kind: str, text: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            warnings.warn(text, RuntimeWarning, stacklevel=2)


def _check_block(block: object) -> None:
    if not isinstance(block, ODEBlock):
        raise TypeError(
            f"block must be a snopt.ODEBlock, got {type(block).__name__}: only a block has an end"
            " time that can be moved (that of an event solve is a function of the state)"
        )
    if block.return_all or block.t.numel() != 2:
        raise ValueError(
            "the end of this block cannot be trained: the loss may read its state at"
            f" {block.t.numel()} times; give it two times and return_all=False"
        )
    if block.t.requires_grad:
        raise ValueError("the times of this block have a gradient of their own: detach block.t")
