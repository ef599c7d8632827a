"""How an optimizer takes a training step: the one place where optimizers differ for the trainer.

An :class:`Evaluation` is the training loss of one batch, as often as an optimizer asks for it. The
attributes of an optimizer tell which of three protocols it follows:

- *plain*: the trainer evaluates loss and gradients, then calls ``step()``. The default. Where the
  optimizer has a true ``wants_evaluation`` (a trust region; see :class:`snopt.SNOpt`), it calls
  ``step(evaluate=…)`` with a function that returns the loss at the present weights.
- *closure*: the trainer calls ``step(closure)``, and the optimizer evaluates as often as it likes.
  For an optimizer whose ``step`` has no default for ``closure`` (torch's convention; LBFGS), or
  that has a true attribute ``needs_closure``.
- *own*: the trainer calls ``train_step(evaluation)``, if there is such a method. An
  :class:`Evaluation` can do more than a closure (the loss with its graph).

What a method ``metrics()`` returns (name → number) is logged as ``optimizer/<name>``.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from experiments.base.errors import ConfigError
from experiments.base.seeds import rng_state, set_rng_state
from experiments.tasks import Batch, Task
from snopt import SolverError

PENALTY: Final = 1e6
"""Loss of a trial point that cannot be evaluated, in units of max(1, |loss at the start|).

Finite, and its square too: line searches interpolate with it in float32.
"""


class Diverged(Exception):  # noqa: N818 (an outcome of an experiment, not a fault)
    """A loss or metric is not finite; the message says which one and when."""


class Evaluation:
    """The loss of one batch at the present weights; called, a closure in the sense of torch.

    The first evaluation draws random numbers (dropout, the noise of a trace) as any forward pass
    does. All later ones see the same numbers, start from the same buffers, and leave both as they
    found them: an optimizer compares one function at different weights, and the run's random stream
    does not depend on the number of evaluations.

    Args:
        task: gives the loss.
        model: what is trained.
        batch: the batch.
        optimizer: whose gradients are reset before each evaluation.
        step: number of the step, for messages.
        repeatable: whether there may be a second evaluation.

    Attributes:
        first: the loss of the first evaluation, that is at the weights before the step.
        count: evaluations so far.
    """

    def __init__(
        self,
        task: Task,
        model: nn.Module,
        batch: Batch,
        optimizer: Optimizer,
        *,
        step: int = 1,
        repeatable: bool = True,
    ) -> None:
        """Evaluate nothing yet."""
        self.task = task
        self.model = model
        self.batch = batch
        self.optimizer = optimizer
        self.step = step
        self.first: float | None = None
        self.count = 0
        self._output: Tensor | None = None
        self._start = _State(model) if repeatable else None

    def __call__(self) -> Tensor:
        """Compute loss and gradients at the present weights, into ``.grad``; return the loss.

        Returns:
            The loss, detached. Where the ODE of a later evaluation cannot be solved, or its loss is
            not finite, a large number with zero gradients: a line search turns such a point down.

        Raises:
            Diverged: the loss of the first evaluation is not finite.
            SolverError: the ODE of the first evaluation could not be solved.
        """
        trial = self.first is not None
        with torch.enable_grad():
            self.optimizer.zero_grad()
            try:
                with self._same_start():
                    loss = self._forward()
                    if not trial or math.isfinite(loss.item()):
                        self._backward(loss)
                        return loss.detach()
            except SolverError:
                if not trial:
                    raise
        self.optimizer.zero_grad()
        for parameter in self.model.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter)
        like = next(self.model.parameters())
        return like.new_tensor(PENALTY * max(1.0, abs(self.first or 0.0)))

    @torch.enable_grad()
    def gradients(self, params: Sequence[Tensor]) -> list[Tensor | None]:
        """Return the loss's gradients at the present weights; ``.grad`` is left alone.

        Args:
            params: with respect to what; None is returned for one that the loss does not use.

        Raises:
            Diverged: the loss is not finite.
            SolverError: an ODE could not be solved.
        """
        with self._same_start():
            loss = self._finite()
            return list(torch.autograd.grad(loss, list(params), allow_unused=True))

    @torch.enable_grad()
    def loss(self) -> Tensor:
        """Return the loss with its graph; ``.grad`` is left alone.

        Raises:
            Diverged: the loss is not finite.
            SolverError: an ODE could not be solved.
        """
        with self._same_start():
            return self._finite()

    def _finite(self) -> Tensor:
        loss = self._forward()
        if not math.isfinite(loss.item()):
            raise Diverged(f"the training loss is {loss.item()} within step {self.step}")
        return loss

    @torch.no_grad()
    def value(self) -> Tensor:
        """Return the loss at the present weights, without gradients; it need not be finite.

        Raises:
            SolverError: an ODE could not be solved.
        """
        with self._same_start():
            return self._forward().detach()

    def _backward(self, loss: Tensor) -> None:
        if needs_output(self.optimizer):
            backward: Any = self.optimizer.backward  # type: ignore[attr-defined]
            backward(loss, self._output, self.task.likelihood)
            self._output = None
        else:
            loss.backward()

    def _forward(self) -> Tensor:
        self.count += 1
        if needs_output(self.optimizer):
            with self.model.register_forward_hook(self._keep_output):
                loss = self.task.loss(self.model, self.batch)
        else:
            loss = self.task.loss(self.model, self.batch)
        if self.first is None:
            value = loss.item()
            if not math.isfinite(value):
                raise Diverged(f"the training loss is {value} at step {self.step}")
            self.first = value
        return loss

    def _keep_output(self, _model: nn.Module, _inputs: object, output: Tensor) -> None:
        self._output = output

    @contextmanager
    def _same_start(self) -> Iterator[None]:
        """Give a repeated evaluation the random numbers and buffers that the first one had."""
        if self.first is None:
            yield
            return
        if self._start is None:
            raise RuntimeError("this evaluation was made for one look at the loss, not for more")
        now = _State(self.model)
        self._start.restore()
        try:
            yield
        finally:
            now.restore()


def needs_output(optimizer: Optimizer) -> bool:
    """Return whether the optimizer's backward pass wants the model's output (mc and ggn)."""
    return getattr(optimizer, "curvature_type", "empirical") != "empirical"


def check_task(task: Task, optimizer: Optimizer) -> None:
    """Raise ConfigError where the optimizer needs a likelihood and the task has none."""
    if needs_output(optimizer) and task.likelihood is None:
        raise ConfigError(
            "the optimizer's curvature starts at the distribution that the model predicts, and the"
            f" task {task.name} has none: leave optimizer.curvature out"
        )


class _State:
    """Random generators and buffers (running statistics, remembered step sizes) of a moment."""

    def __init__(self, model: nn.Module) -> None:
        self.rng = rng_state()
        self.buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]

    @torch.no_grad()
    def restore(self) -> None:
        set_rng_state(self.rng)
        for buffer, value in self.buffers:
            if not torch.equal(buffer, value):  # a graph may hold the others, a block's times
                buffer.copy_(value)


TakeStep = Callable[[Optimizer, Evaluation], None]


def take_step(protocol: TakeStep, optimizer: Optimizer, evaluation: Evaluation) -> float:
    """Take one step by the protocol of an optimizer; return the loss before it.

    Raises:
        Diverged: the loss is not finite, or the update overflows its dtype.
        SolverError: an ODE could not be solved.
    """
    try:
        protocol(optimizer, evaluation)
    except RuntimeError as error:
        if "without overflow" not in str(error):  # what torch says of a scalar past float32
            raise
        raise Diverged(
            f"the optimizer's update overflows at step {evaluation.step}: its learning rate or "
            "weight decay is too large"
        ) from error
    if evaluation.first is None:
        raise RuntimeError(f"{type(optimizer).__name__} took a step without evaluating the loss")
    return evaluation.first


def protocol_of(optimizer: Optimizer) -> TakeStep:
    """Return what takes a step of this optimizer."""
    if callable(getattr(optimizer, "train_step", None)):
        return _own
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    required = closure is not None and closure.default is inspect.Parameter.empty
    return _closure if required or getattr(optimizer, "needs_closure", False) else _plain


def is_plain(optimizer: Optimizer) -> bool:
    """Return whether one evaluation before ``step()`` is all that the optimizer needs."""
    return protocol_of(optimizer) is _plain


def metrics_of(optimizer: Optimizer) -> dict[str, float]:
    """Return what the optimizer reports of itself, named ``optimizer/…``."""
    report = getattr(optimizer, "metrics", None)
    if not callable(report):
        return {}
    return {f"optimizer/{name}": float(value) for name, value in report().items()}


def may_repeat(optimizer: Optimizer) -> bool:
    """Return whether the coming step may evaluate the loss more than once."""
    return not is_plain(optimizer) or bool(getattr(optimizer, "wants_evaluation", False))


def _plain(optimizer: Optimizer, evaluation: Evaluation) -> None:
    evaluation()
    if getattr(optimizer, "wants_evaluation", False):
        step: Any = optimizer.step
        step(evaluate=evaluation.value)
    else:
        optimizer.step()


def _closure(optimizer: Optimizer, evaluation: Evaluation) -> None:
    optimizer.step(evaluation)  # type: ignore[arg-type]


def _own(optimizer: Optimizer, evaluation: Evaluation) -> None:
    optimizer.train_step(evaluation)  # type: ignore[attr-defined]
