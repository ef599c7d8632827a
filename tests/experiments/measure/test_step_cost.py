"""Step costs of all optimizers: means and medians, and the weights they are measured at."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from experiments.base.errors import RecordError
from experiments.measure import plot_step_cost, step_cost, store
from experiments.measure import run as runner
from experiments.measure.origin import origin
from experiments.measure.step_cost import _Stepper, headline, measure_step_cost, measured, score
from experiments.optimizers.evaluation import Diverged

CPU = torch.device("cpu")
TINY = ["model.width=2", "trainer.batch_size=4"]


def test_the_mean_holds_a_refresh_with_its_share_and_the_median_does_not():
    none = {"losses": 1.0}
    found = score(
        {"sgd": [1.0] * 10, "snopt": [1.5] * 9 + [6.5]}, {"sgd": none, "snopt": {"losses": 2.0}}
    )
    assert found["snopt"]["average_over_sgd"] == pytest.approx(2.0)
    assert found["snopt"]["ordinary_over_sgd"]["median"] == pytest.approx(1.5)
    assert found["snopt"]["losses"] == 2.0
    assert found["sgd"]["average_over_sgd"] == 1.0
    assert headline({"optimizers": found}).endswith("sgd 1.00, snopt 2.00")


def test_every_step_is_taken_at_the_first_weights():
    one = _Stepper("adahessian", CPU, TINY)
    before = [p.detach().clone() for p in one.params]
    one.step()
    one.step()
    assert all(torch.equal(p, was) for p, was in zip(one.params, before, strict=True))
    moments = [one.parts.optimizer.state[p]["exp_avg"] for p in one.params]
    assert any(bool(m.any()) for m in moments)  # but the optimizer has moved on
    assert one.evaluations()["losses"] == 3.0


def test_pairs_and_variants_are_left_out():
    assert {"sgd", "adam", "snopt", "lbfgs"} <= set(measured())
    assert not {"split", "sgd_ode", "snopt_ode"} & set(measured())


@pytest.mark.parametrize("fails", ["built", "first step", "later step"])
def test_an_optimizer_that_fails_drops_out_and_the_others_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
):
    class Failing(_Stepper):
        """Adam, which fails sooner or later."""

        def __init__(self, name: str, *arguments: object) -> None:
            super().__init__(name, *arguments)
            self.name = name
            if name == "adam" and fails == "built":
                raise Diverged("the training loss is nan at step 1")

        def step(self) -> None:
            if self.name == "adam" and self.steps == {"first step": 0, "later step": 2}.get(fails):
                raise Diverged("the training loss is nan at step 1")
            super().step()

    monkeypatch.setattr(step_cost, "ROUNDS_EACH", 3)
    monkeypatch.setattr(step_cost, "_Stepper", Failing)
    names = ["sgd", "adam", "muon"]
    monkeypatch.setattr(
        runner.step_cost,
        "measure_step_cost",
        lambda device, repeats: measure_step_cost(device, repeats, names=names, overrides=TINY),
    )
    plan = runner.Plan(("optimizers",), (), CPU, repeats=1, folder=tmp_path)
    with pytest.raises(RecordError, match="optimizers digits, adam: the training loss is nan"):
        runner.run(plan, lambda line: None)
    entry = store.load(tmp_path, "optimizers")["workloads"]["digits"]
    assert list(entry["optimizers"]) == ["sgd", "muon"]
    assert entry["failed"] == {"adam": "the training loss is nan at step 1"}
    assert entry["optimizers"]["muon"]["seconds"]["count"] == 4
    table = (tmp_path / "optimizers.md").read_text(encoding="utf-8").splitlines()
    assert table[-1].startswith("| adam | failed: the training loss is nan")
    assert all(row.count("|") == table[0].count("|") for row in table)


def test_without_sgd_there_is_nothing_to_compare_to(monkeypatch: pytest.MonkeyPatch):
    def fail(self: _Stepper) -> None:
        raise ValueError("no step")

    monkeypatch.setattr(_Stepper, "step", fail)
    with pytest.raises(RecordError, match="SGD, to which all are compared, fails: no step"):
        measure_step_cost(CPU, 1, names=["adam"], overrides=TINY)


def test_an_entry_is_kept_and_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(step_cost, "ROUNDS_EACH", 2)
    entry = measure_step_cost(CPU, 1, names=["muon", "snopt"], overrides=TINY)
    assert entry["rounds"] == 3
    assert entry["settings"]["muon"]["ns_steps"] == 5
    assert list(entry["optimizers"]) == ["sgd", "muon", "snopt"]
    assert entry["optimizers"]["muon"]["nfe_backward"] > 0
    store.save(tmp_path, "optimizers", "digits", {"origin": origin(CPU, 1), **entry})
    plot_step_cost.draw(tmp_path)
    assert (tmp_path / "optimizers.png").stat().st_size > 10_000
    table = (tmp_path / "optimizers.md").read_text(encoding="utf-8").splitlines()
    assert len(table) == 2 + 3
    assert all(row.count("|") == table[0].count("|") for row in table)
    ratios = [float(row.split("|")[2]) for row in table[2:]]
    assert ratios == sorted(ratios)
