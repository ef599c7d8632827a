"""The config groups model, task and solver: they instantiate, and a task brings what fits it."""

from __future__ import annotations

import math

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor, nn

from experiments.data.splits import DataInfo
from experiments.models.solver import SolverSettings
from experiments.run.config import CONFIGS, check_config, load_config, options, resolve

INFOS = {
    "image": DataInfo("tiny", "image", (1, 8, 8), 3, "made up"),
    "time_series": DataInfo("tiny", "time_series", (4, 5), 3, "made up"),
    "cnf": DataInfo("tiny", "cnf", (2,), None, "made up"),
}


class Decay(nn.Module):
    """F(t, z) = -rate · z."""

    def __init__(self) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.ones(()))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return -self.rate * z


def batch(task: str) -> tuple[Tensor, ...]:
    """Return a batch of four examples that fits ``INFOS``."""
    y = torch.tensor([0, 1, 2, 0])
    if task == "image":
        return torch.randn(4, 1, 8, 8), y
    if task == "cnf":
        return (torch.randn(4, 2),)
    x = torch.cat([torch.arange(4.0).expand(4, 4)[..., None], torch.randn(4, 4, 4).abs()], dim=-1)
    return x, torch.tensor([4, 2, 3, 1]), y


@pytest.mark.parametrize("name", options("model"))
def test_every_model_trains_one_step_on_its_task(name):
    config = OmegaConf.load(CONFIGS / "model" / f"{name}.yaml")
    kind = config.pop("task")
    # Partial, because Hydra would turn dataclass arguments into configs.
    model = instantiate(config, _partial_=True)(INFOS[kind], SolverSettings())
    task = instantiate(load_config([f"task={kind}"]).task)
    assert task.name == kind
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    data = batch(kind)
    before = task.loss(model, data)
    before.backward()
    optimizer.step()
    result = task.evaluate(model, data, batch_size=3)
    assert set(result) == {"loss", task.metric}
    # One small step: loss and evaluation would otherwise measure different things.
    assert result["loss"] == pytest.approx(before.item(), abs=0.5)


@pytest.mark.parametrize("name", options("solver"))
def test_every_solver_solves(name):
    settings = instantiate(load_config([f"solver={name}"]).solver)
    assert isinstance(settings, SolverSettings)
    block = settings.block(Decay())
    z = torch.ones(2, 1, requires_grad=True)
    out = block(z)
    out.sum().backward()
    assert out[0, 0].item() == pytest.approx(math.exp(-1), rel=1e-2)
    assert z.grad[0, 0].item() == pytest.approx(math.exp(-1), rel=1e-2)
    assert block.func.rate.grad.item() == pytest.approx(-2 * math.exp(-1), rel=1e-2)


@pytest.mark.parametrize(
    ("task", "dataset", "model"),
    [
        ("image", "digits", "conv_ode"),
        ("time_series", "japanese_vowels", "ode_rnn"),
        ("cnf", "circle", "cnf_hyper"),
    ],
)
def test_a_task_brings_its_data_set_and_model(task, dataset, model):
    config = load_config([f"task={task}"])
    assert config.dataset == load_config([f"dataset={dataset}"]).dataset
    assert config.model == load_config([f"model={model}"]).model
    check_config(resolve(config))


def test_the_command_line_wins_over_the_task():
    config = load_config(["task=time_series", "dataset=basic_motions"])
    assert config.dataset.task == "time_series"
    assert config.dataset != load_config(["task=time_series"]).dataset
    config = load_config(["model=conv_ode_small", "task=image"])
    assert config.model.width == 16
    assert load_config(["task=cnf", "model=cnf_concat_squash"]).model.layers == 3


def test_solver_variants_differ_from_dopri5_as_named():
    fine = load_config(["solver=dopri5_fine_seminorm"]).solver
    assert (fine.method, fine.rtol, fine.atol) == ("dopri5", 1e-6, 1e-8)
    assert fine.adjoint_options == {"norm": "seminorm", "max_num_steps": 500}
    fixed = load_config(["solver=rk4"]).solver
    assert (fixed.method, fixed.options["step_size"]) == ("rk4", 0.1)
    assert load_config(["solver.gradient=direct"]).solver.gradient == "direct"
