"""ODE-RNN: a GRU cell at the observations, an ODE between them (Rubanova et al. 2019)."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn

from experiments.base.errors import ConfigError, DataError
from experiments.data.splits import DataInfo
from experiments.models.checks import require_classes, require_task, require_whole
from experiments.models.fields import MLPField
from experiments.models.solver import SolverSettings


class PublishedGRU(nn.Module):
    """A GRU cell as in the published runs: linear layers with torch's own initialisation of them.

    r = σ(W_r [x, h]),  u = σ(W_u [x, h]),  n = tanh(W_x x + r ⊙ W_h h),  h ← (1 - u) n + u h, each
    W with a bias. ``nn.GRUCell`` has two biases in r and u, and all its weights start within
    ±1/√hidden, whatever the number of inputs.
    """

    def __init__(self, inputs: int, hidden: int) -> None:
        """Build the cell for ``inputs`` values an observation."""
        super().__init__()
        self.reset = nn.Linear(inputs + hidden, hidden)
        self.update = nn.Linear(inputs + hidden, hidden)
        self.from_input = nn.Linear(inputs, hidden)
        self.from_state = nn.Linear(hidden, hidden)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """Return the next state, (batch, hidden), after the observation x (batch, inputs)."""
        both = torch.cat([x, h], dim=1)
        r, u = self.reset(both).sigmoid(), self.update(both).sigmoid()
        n = torch.tanh(self.from_input(x) + r * self.from_state(h))
        new: Tensor = (1 - u) * n + u * h
        return new


CELLS: Final = {"gru": nn.GRUCell, "published": PublishedGRU}


class ODERNN(nn.Module):
    """Time-series classifier with one ODE solve per interval between observations.

    Starting from h = 0: at observation k, h = GRU([values, mask], h); on to observation k + 1,
    dh/dt = F(h) over the real time difference. The read-out is a linear layer on h right after a
    series' own last observation.

    All series of a batch share one time grid, so that an interval is one solve for the whole batch.
    The state of a series is frozen from its last observation on: later solves carry its row along,
    but their result is dropped. So every layer of F always sees the whole batch, which the
    Kronecker factors take as its leading dimension. A row that observes nothing at some time (mask
    all zero) keeps its state there, without a GRU step.
    """

    def __init__(
        self,
        info: DataInfo,
        solver: SolverSettings,
        *,
        hidden: int = 32,
        layers: int = 4,
        cell: str = "gru",
    ) -> None:
        """Build the net for the series of a data set.

        Args:
            info: data set; ``input_shape`` is (L, 2 D + 1): time, D values, D masks.
            solver: settings of the ODE block.
            hidden: size of the state h; the paper has 32 (64 for ArticularyWordRecognition).
            layers: linear layers of F; the paper has 4.
            cell: ``"gru"``, torch's cell on values and mask, or ``"published"``,
                :class:`PublishedGRU` on the values alone.

        Raises:
            ConfigError: if the data set is not one of time series, its last axis is not
                [time | values | mask], or a hyper-parameter is out of range.
        """
        super().__init__()
        require_task("ODERNN", info, "time_series")
        require_whole("ODERNN", hidden=hidden, layers=layers)
        shape = tuple(info.input_shape)
        if len(shape) != 2 or shape[1] < 3 or shape[1] % 2 == 0:
            raise ConfigError(
                "ODERNN needs input_shape (L, 2 D + 1) for [time | D values | D masks], but data "
                f"set '{info.name}' has {shape}"
            )
        self.channels = (shape[1] - 1) // 2
        self.hidden = hidden
        if cell not in CELLS:
            raise ConfigError(f"model ODERNN: cell must be {' or '.join(CELLS)}, got {cell!r}")
        self.masked = cell == "gru"
        self.cell = CELLS[cell](self.channels * (1 + self.masked), hidden)
        self.ode = solver.block(MLPField(hidden, layers), (0.0, 1.0))
        self.readout = nn.Linear(hidden, require_classes("ODERNN", info))

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Return the logits, (batch, num_classes), at each series' last observation.

        Args:
            x: series, shape (batch, L, 2 D + 1), last axis [time | values | mask]; what lies beyond
                a series' length is not used.
            lengths: observations of each series, int64, shape (batch,), between 1 and L.

        Raises:
            ConfigError: if the shapes do not fit the model.
            DataError: if a length is out of range or the series do not share an increasing grid.
        """
        self._check(x, lengths)
        times = shared_times(x[..., 0], lengths)
        values, mask = x[..., 1 : self.channels + 1], x[..., self.channels + 1 :]
        running = torch.arange(len(times), device=x.device) < lengths[:, None]
        # Rows without an observation keep their state, ended ones included: padding has no say.
        observed = (running & (mask[:, : len(times)] > 0).any(dim=-1))[..., None]
        inputs = torch.cat([values, mask], dim=-1) if self.masked else values

        h = x.new_zeros(x.shape[0], self.hidden)
        for k in range(len(times)):
            if k > 0:
                evolved = self.ode(h, t=(times[k - 1], times[k]))
                h = torch.where(running[:, k, None], evolved, h)
            h = torch.where(observed[:, k], self.cell(inputs[:, k], h), h)
        logits: Tensor = self.readout(h)
        return logits

    def _check(self, x: Tensor, lengths: Tensor) -> None:
        features = 2 * self.channels + 1
        if x.ndim != 3 or x.shape[-1] != features:
            raise ConfigError(
                f"ODERNN was built for series of (length, {features}), got a batch of "
                f"{tuple(x.shape)}"
            )
        if lengths.shape != x.shape[:1]:
            raise ConfigError(
                f"ODERNN needs one length a series, got {tuple(lengths.shape)} lengths for a batch "
                f"of {x.shape[0]}"
            )


def shared_times(times: Tensor, lengths: Tensor) -> list[float]:
    """Return the time grid, max(lengths) times, that the series of a batch share.

    Args:
        times: observation times, shape (batch, L); meaningless beyond a series' length.
        lengths: observations of each series, shape (batch,).
    """
    times, lengths = times.detach().cpu(), lengths.cpu()
    longest = int(lengths.max())
    if int(lengths.min()) < 1 or longest > times.shape[1]:
        raise DataError(
            f"series lengths must lie between 1 and {times.shape[1]}, got "
            f"{int(lengths.min())} to {longest}"
        )
    grid = times[int(lengths.argmax()), :longest]
    valid = torch.arange(longest) < lengths[:, None]
    if bool(((times[:, :longest] != grid) & valid).any()):
        raise DataError("the series of a batch must share one time grid; their times differ")
    if bool((grid.diff() <= 0).any()):
        raise DataError("observation times must increase strictly along a series")
    out: list[float] = grid.tolist()
    return out
