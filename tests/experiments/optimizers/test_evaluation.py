"""One batch's loss, looked at many times: the same function each time, and no trace left."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from stand_ins import OPTIMIZERS, TinyModel, TinyTask, load, make_config
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from experiments.base.errors import ConfigError
from experiments.models.blocks import nfe_counts
from experiments.models.solver import SolverSettings
from experiments.optimizers.evaluation import (
    PENALTY,
    Diverged,
    Evaluation,
    is_plain,
    may_repeat,
    metrics_of,
    protocol_of,
    take_step,
)
from experiments.run.config import run_folder
from experiments.run.records import Record
from experiments.run.run import run
from snopt import SolverError

LBFGS = {"_target_": "experiments.optimizers.lbfgs.LBFGS", "lr": 1.0, "max_iter": 4}
LBFGS |= {"name": "lbfgs", "line_search_fn": "strong_wolfe", "scheduler": None}


def evaluation(model: nn.Module | None = None, **options: object) -> Evaluation:
    model = model or TinyModel(load().info, SolverSettings())
    batch = tuple(t[:10] for t in load().train)
    return Evaluation(TinyTask(), model, batch, SGD(model.parameters(), lr=0.1), **options)


def test_a_repeated_evaluation_sees_the_same_dropout_and_is_counted():
    torch.manual_seed(0)
    look = evaluation()
    look()
    once = nfe_counts(look.model)["forward"]
    look()
    assert nfe_counts(look.model)["forward"] == 2 * once
    look = evaluation()
    values = [float(look()) for _ in range(3)]
    values += [look.loss().item(), float(look.value())]
    assert len(set(values)) == 1
    assert look.first == values[0]
    assert look.count == 5


def test_the_random_stream_does_not_depend_on_the_number_of_looks():
    def next_number(looks: int) -> Tensor:
        torch.manual_seed(0)
        look = evaluation()
        for _ in range(looks):
            look()
        return torch.rand(())

    assert torch.equal(next_number(1), next_number(4))
    assert not torch.equal(next_number(1), next_number(0))


def test_buffers_are_those_of_the_first_evaluation():
    class Normalised(TinyModel):
        def __init__(self) -> None:
            super().__init__(load().info, SolverSettings(reuse_step=True))
            self.norm = nn.BatchNorm1d(3)

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(self.norm(x))

    model = Normalised()
    look = evaluation(model)
    first = float(look())
    after = copy.deepcopy(dict(model.named_buffers()))
    assert int(after["norm.num_batches_tracked"]) == 1
    assert float(look()) == first
    # NaN where a step size is not remembered.
    assert all(
        torch.equal(torch.nan_to_num(b), torch.nan_to_num(after[n]))
        for n, b in model.named_buffers()
    )


def test_a_second_look_has_to_be_announced():
    look = evaluation(repeatable=False)
    look()
    with pytest.raises(RuntimeError, match="one look"):
        look()


@pytest.mark.parametrize("fault", ["NAN", "SOLVER"])
def test_the_first_look_fails_and_a_later_one_is_refused(monkeypatch, fault):
    monkeypatch.setenv(f"FAULT_{fault}_AT", "1")
    error = Diverged if fault == "NAN" else SolverError
    with pytest.raises(error, match="loss is nan at step 7" if fault == "NAN" else "underflow"):
        evaluation(step=7)()
    monkeypatch.setenv(f"FAULT_{fault}_AT", "2")
    look = evaluation()
    first = float(look())
    refused = look()
    assert float(refused) == pytest.approx(PENALTY * max(1.0, abs(first)))
    assert not any(bool(p.grad.any()) for p in look.model.parameters())
    assert math.isfinite(float(look()))


class Counting(SGD):
    """SGD that looks again after its step."""

    needs_closure = True

    def step(self, closure=None):
        loss = closure()
        super().step()
        self.after = float(closure())
        return loss

    def metrics(self) -> dict[str, float]:
        return {"after": self.after}


def test_protocols_follow_the_shape_of_an_optimizer():
    model = nn.Linear(2, 2)
    sgd, counting = SGD(model.parameters(), lr=0.1), Counting(model.parameters(), lr=0.1)
    lbfgs = torch.optim.LBFGS(model.parameters())
    assert [is_plain(o) for o in (sgd, counting, lbfgs)] == [True, False, False]
    # A schedule wraps step(): the signature has to survive.
    torch.optim.lr_scheduler.ExponentialLR(lbfgs, 0.5)
    assert not is_plain(lbfgs)
    assert metrics_of(sgd) == {}


def test_a_closure_is_called_at_the_weights_after_the_step():
    model = TinyModel(load().info, SolverSettings()).eval()
    optimizer = Counting(model.parameters(), lr=0.1)
    look = Evaluation(TinyTask(), model, load().train, optimizer)
    before = take_step(protocol_of(optimizer), optimizer, look)
    assert metrics_of(optimizer) == {"optimizer/after": pytest.approx(float(look.value()))}
    assert optimizer.after < before


def test_an_optimizer_that_never_looks_is_an_error():
    class Blind(SGD):
        def train_step(self, _evaluation: Evaluation) -> None:
            pass

    look = evaluation()
    blind: Optimizer = Blind(look.model.parameters(), lr=0.1)
    with pytest.raises(RuntimeError, match="Blind took a step without evaluating"):
        take_step(protocol_of(blind), blind, look)


class Judged(SGD):
    """SGD that compares losses every other step, as a trust region does."""

    steps, seen = 0, ()

    @property
    def wants_evaluation(self) -> bool:
        return self.steps % 2 == 0

    def step(self, closure=None, *, evaluate=None):
        assert (evaluate is not None) == self.wants_evaluation
        self.steps += 1
        before = None if evaluate is None else float(evaluate())
        super().step()
        if evaluate is not None:
            self.seen = (*self.seen, (before, float(evaluate())))


def test_a_trust_region_gets_the_loss_where_it_asks():
    torch.manual_seed(0)
    model = TinyModel(load().info, SolverSettings())
    optimizer = Judged(model.parameters(), lr=0.05)
    losses = []
    for _ in range(3):
        batch, repeatable = load().train, may_repeat(optimizer)
        look = Evaluation(TinyTask(), model, batch, optimizer, repeatable=repeatable)
        losses.append(take_step(protocol_of(optimizer), optimizer, look))
    assert [before for before, _ in optimizer.seen] == [losses[0], losses[2]]
    assert all(after < before for before, after in optimizer.seen)


@pytest.mark.parametrize("kind", ["mc", "ggn"])
def test_curvature_from_the_output_gets_the_output(tmp_path, kind):
    config = make_config(tmp_path, "snopt")
    config["optimizer"] = {**OPTIMIZERS["snopt"], "curvature": kind, "update_freq": 1}
    config["task"] = {"_target_": "experiments.tasks.ImageTask", "name": "image"}
    assert run(config).state == "done"
    losses = [row["train/loss"] for row in Record(run_folder(config)).rows() if "train/loss" in row]
    assert losses[-1] < losses[0]


def test_lbfgs_runs_in_the_trainer_and_its_looks_are_counted(tmp_path, monkeypatch):
    def lbfgs(name: str, **trainer: int) -> dict:
        return {**make_config(tmp_path / name, **trainer), "optimizer": dict(LBFGS)}

    config, sgd = lbfgs("whole"), make_config(tmp_path, "sgd")
    assert run(config).state == run(sgd).state == "done"
    rows = Record(run_folder(config)).rows()
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    assert losses[-1] < losses[0]
    once = Record(run_folder(sgd)).rows()[1]["nfe/forward"]
    assert rows[1]["nfe/forward"] > 2 * once
    assert rows[1]["nfe/backward"] > 0
    # A trial point that cannot be solved does not end the run, the first point does.
    for call, state in (("2", "done"), ("1", "diverged")):
        monkeypatch.setenv("FAULT_SOLVER_AT", call)
        assert run(lbfgs(call, max_steps=3)).state == state


def test_curvature_from_the_output_needs_a_likelihood_before_anything_is_written(tmp_path):
    config = make_config(tmp_path, "snopt")
    config["optimizer"] = {**OPTIMIZERS["snopt"], "curvature": "mc"}
    config["task"] = {"_target_": "experiments.tasks.CNFTask", "name": "image"}
    with pytest.raises(ConfigError, match=r"task cnf has none: leave optimizer.curvature out"):
        run(config)
    assert not list(tmp_path.iterdir())
