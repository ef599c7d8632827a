"""How an optimizer takes a training step: the one place where optimizers differ for the trainer.

Three protocols, of which an optimizer says by its own shape which one is its:

- *plain*: the trainer evaluates loss and gradients, then calls ``step()``. The default. Where the
  optimizer has a true ``wants_evaluation``, it calls ``step(evaluate=…)`` with a function that
  returns the loss at the present weights (a trust region; see :class:`snopt.SNOpt`).
- *closure*: the trainer calls ``step(closure)``, and the optimizer evaluates as often as it likes.
  For an optimizer whose ``step`` has no default for ``closure`` (torch's convention; LBFGS), or
  that has a true attribute ``needs_closure``.
- *own*: the trainer calls ``train_step(evaluation)`` with an :class:`Evaluation`, which can do more
  than a closure (the loss with its graph). For an optimizer with such a method.

An optimizer with a method ``metrics()`` (name → number) has them in ``metrics.jsonl`` as
``optimizer/<name>``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer

from experiments.optimizers.evaluation import Diverged, Evaluation

TakeStep = Callable[[Optimizer, Evaluation], None]


def take_step(protocol: TakeStep, optimizer: Optimizer, evaluation: Evaluation) -> float:
    """Take one step by a protocol of :func:`protocol_of`; return the loss before it.

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
    return _closure if wants_closure(optimizer) else _plain


def is_plain(optimizer: Optimizer) -> bool:
    """Return whether one evaluation before ``step()`` is all that the optimizer needs."""
    return protocol_of(optimizer) is _plain


def wants_closure(optimizer: Optimizer) -> bool:
    """Return whether ``step`` has to be given a closure."""
    if getattr(optimizer, "needs_closure", False):
        return True
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty


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
