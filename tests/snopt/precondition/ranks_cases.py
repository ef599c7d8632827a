"""Tiny runs that one process and several ranks do alike; run as a script, it is one rank."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from snopt_cases import TanhField
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from snopt import ODEBlock, SNOpt, average_gradients
from snopt.baselines import EKFAC, KFAC
from snopt.curvature.factors import THIN_FROM, Factors
from snopt.precondition.ranks import Ranks

ROWS = 12


class TimeField(nn.Module):
    """A field with a gate that sees the time alone."""

    def __init__(self) -> None:
        super().__init__()
        self.main, self.gate = TanhField(), nn.Linear(1, 3)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return self.main(t, z) * torch.sigmoid(self.gate(t.reshape(1, 1)))


class WideGateField(nn.Module):
    """A field with a gate that sees the time alone, wide enough for its factor to be thin."""

    def __init__(self) -> None:
        super().__init__()
        self.main, self.gate = TanhField(), nn.Linear(1, THIN_FROM)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        gate = torch.sin(3 * self.gate(t.reshape(1, 1))).reshape(2, -1)
        return self.main(t, z) * gate[0].mean() - z * gate[1].mean()


class Net(nn.Module):
    """Linear, ODE, Linear to three classes; a parameter that nothing uses."""

    def __init__(self, field: type[nn.Module] = TanhField, adaptive: bool = False) -> None:
        super().__init__()
        self.encode = nn.Linear(2, 3)
        if adaptive:
            self.ode = ODEBlock(field(), rtol=1e-8, atol=1e-8)
        else:
            self.ode = ODEBlock(field(), method="rk4", options={"step_size": 0.5})
        self.decode = nn.Linear(3, 3)
        self.unused = nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.ode(self.encode(x)))


@dataclass(frozen=True)
class Case:
    """How to train.

    ``split``: rows of each rank, None for equal parts. ``wrapped``: in DistributedDataParallel.
    ``adaptive``: each rank's solver chooses its own steps, so that ranks agree to its tolerance.
    """

    make: Any = SNOpt
    options: tuple[tuple[str, Any], ...] = (("lr", 0.1), ("update_freq", 5))
    split: tuple[int, ...] | None = None
    wrapped: bool = False
    field: type[nn.Module] = TanhField
    adaptive: bool = False
    steps: int = 20
    shrinks: bool = False  # two rows of each part at every other step


CASES = {
    "snopt": Case(adaptive=True),
    "uneven": Case(split=(9, 3)),
    "wrapped": Case(wrapped=True),
    "thinned": Case(options=(("lr", 0.1), ("update_freq", 2), ("curvature_batch", 4)), steps=4),
    "ggn": Case(options=(("lr", 0.1), ("curvature", "ggn"), ("update_freq", 2)), steps=4),
    "kfac": Case(KFAC, (("lr", 0.05), ("update_freq", 2), ("inverse_freq", 4))),
    "ekfac": Case(EKFAC, (("lr", 0.05), ("moment", "running"), ("inverse_freq", 20))),
    "shrinking": Case(steps=7, shrinks=True),
    "time": Case(field=TimeField, options=(("lr", 0.1), ("update_freq", 2)), steps=4),
    "thin": Case(field=WideGateField, options=(("lr", 0.1), ("update_freq", 2)), steps=4),
}


def data() -> tuple[Tensor, Tensor]:
    """Return points and classes."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(ROWS, 2, generator=generator, dtype=torch.float64)
    return x, torch.arange(ROWS) % 3


def train(case: Case, *, ranks: Ranks | None = None, microbatches: int = 1) -> dict[str, Any]:
    """Train on all rows, or on this rank's; return factors of the first step and last weights."""
    torch.manual_seed(0)
    model = Net(case.field, case.adaptive).double()
    if case.wrapped:
        model.unused.requires_grad_(False)  # DistributedDataParallel refuses what gets no gradient
    x, y = data()
    size = 1 if ranks is None else ranks.size
    split = case.split if case.split and ranks else [ROWS // size] * size
    mine = 0 if ranks is None else ranks.rank
    x, y = x.split(split)[mine], y.split(split)[mine]
    optimizer = case.make(model, **dict(case.options))
    called = model
    if ranks is not None:
        optimizer.distribute()
        called = DistributedDataParallel(model) if case.wrapped else model
    factors: dict[str, Any] = {}
    for step in range(case.steps):
        optimizer.zero_grad()
        for part, labels in zip(x.chunk(microbatches), y.chunk(microbatches), strict=True):
            if case.shrinks and step % 2:
                part, labels = part[:2], labels[:2]
            out = called(part)
            loss = nn.functional.cross_entropy(out, labels) / microbatches
            optimizer.backward(loss, out, scale=1 / microbatches)
        if ranks is not None and not case.wrapped:
            average_gradients(model.parameters(), weight=len(x))
        optimizer.step()
        if step == 0:
            states = optimizer.preconditioner.blocks
            factors = {n: _factors(b.state) for n, b in states.items()}
    weights = {n: p.detach() for n, p in model.named_parameters()}
    states = {n: b.state.state_dict() for n, b in optimizer.preconditioner.blocks.items()}
    bases = {n: state["U_B"].shape for n, state in states.items() if "U_B" in state}
    unused = model.unused.grad is None
    return {"factors": factors, "weights": weights, "unused": unused, "bases": bases}


def _factors(state: Any) -> dict[str, Tensor]:
    held = getattr(state, "average", state)
    named = {"A": held.A, "B": held.B, "batch": torch.tensor(float(held.batch))}
    if hasattr(state, "weight"):
        named["weight"] = torch.tensor(state.weight)
    return {key: M.clone() for key, M in named.items()}


def start_ranks(script: Path, folder: Path, size: int, *arguments: str) -> list[Any]:
    """Run a script as several ranks; return what each saved as ``rank-<k>.pt`` in ``folder``."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": str(size)}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), str(folder), *arguments],
            env={**environment, "RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    try:
        errors = [process.communicate(timeout=300)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert all(process.returncode == 0 for process in processes), "\n".join(errors)
    return [torch.load(folder / f"rank-{rank}.pt", weights_only=False) for rank in range(size)]


def pieces(ranks: Ranks) -> dict[str, Any]:
    """Return what the parts of snopt.precondition.ranks give on this rank."""
    matrices = [torch.diag(torch.arange(1.0, d + 1)).expand(g, d, d) for g, d in SIZES]
    matrices[2] = matrices[2] * float("nan")
    matrices[3] = matrices[3].double()
    p, q, r = (nn.Parameter(torch.zeros(2)) for _ in range(3))
    p.grad = torch.full((2,), float(ranks.rank + 1))
    if ranks.rank == 1:
        q.grad = torch.ones(2)
    average_gradients([p, q, r], weight=[1.0, 3.0][ranks.rank])
    try:
        EKFAC(Net()).distribute()
        refusal = ""
    except ValueError as error:
        refusal = str(error)
    own = torch.eye(2 + ranks.rank)[None]
    try:
        ranks.factors({"layer": Factors(own, own, 1.0, 1)}, {"layer": own})
        mismatch = ""
    except ValueError as error:
        mismatch = str(error)
    return {
        "mismatch": mismatch,
        "bases": ranks.eigenbases(matrices),
        "inverses": ranks.inverses(matrices),
        "gradients": [p.grad, q.grad, r.grad],
        "refusal": refusal,
        "lonely": lonely(ranks),
    }


def lonely(ranks: Ranks) -> dict[str, Any]:
    """Return the factors where rank 1 alone had data for a layer."""
    model = Net().double()
    optimizer = SNOpt(model)
    optimizer.distribute()
    x, y = data()
    out = model(x) if ranks.rank else model.encode(x)
    nn.functional.cross_entropy(out, y).backward()
    average_gradients(model.parameters())
    optimizer.step()
    return {n: _factors(b.state) for n, b in optimizer.preconditioner.blocks.items()}


SIZES = [(1, 3), (2, 5), (1, 4), (1, 5)]


def main() -> None:
    """Be one rank: train all cases and save what came out."""
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", ".* does not treat", UserWarning)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder / 'meeting'}",
        rank=int(os.environ["RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]),
    )
    ranks = Ranks()
    found = {name: train(case, ranks=ranks) for name, case in CASES.items()}
    torch.save({**found, "pieces": pieces(ranks)}, folder / f"rank-{ranks.rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
