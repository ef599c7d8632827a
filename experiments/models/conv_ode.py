"""The published image net: convolutional stem, ODE, pooling, linear read-out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from experiments.base.errors import ConfigError
from experiments.data.splits import DataInfo
from experiments.models.checks import require_classes, require_positive, require_task, require_whole
from experiments.models.fields import ConvField
from experiments.models.solver import SolverSettings
from snopt import ODEBlock

MAX_DOWNSAMPLING = 2
MIN_STATE_SIZE = 4


def downsampling_convs(height: int, width: int) -> int:
    """Return how many stride-2 convolutions the stem gets for an image of ``height`` × ``width``.

    As many as leave a state of at least 4 pixels on its shorter side, at most the two of the
    published net: two for 28×28 (state 6×6, as published) and 32×32 (7×7), one for 16×16, none for
    8×8.

    Raises:
        ConfigError: if even the stem without downsampling leaves fewer than 4 pixels.
    """
    size = min(height, width) - 2
    if size < MIN_STATE_SIZE:
        raise ConfigError(
            f"images of {height}x{width} are too small for ConvODE: its 3x3 stem without padding "
            f"needs at least {MIN_STATE_SIZE + 2}x{MIN_STATE_SIZE + 2}"
        )
    count = 0
    while count < MAX_DOWNSAMPLING and size // 2 >= MIN_STATE_SIZE:
        size //= 2
        count += 1
    return count


class ConvODE(nn.Module):
    """Image classifier with one ODE block on a feature map (Liu et al. 2021; Chen et al. 2018).

    conv 3×3 (padding 0), ReLU, conv 4×4 stride 2 (padding 1), ReLU, conv 4×4 stride 2, ODE, ReLU,
    average pool over all locations, linear. Small images get fewer stride-2 convolutions, see
    :func:`downsampling_convs`. With 28×28 images the state of the ODE is (batch, 64, 6, 6).
    """

    def __init__(
        self,
        info: DataInfo,
        solver: SolverSettings,
        *,
        width: int = 64,
        stem_bias: bool = True,
        t1: float = 1.0,
    ) -> None:
        """Build the net for the images of a data set.

        Args:
            info: data set; ``input_shape`` is (C, H, W).
            solver: settings of the ODE block.
            width: channels of the stem and of the state; the paper has 64.
            stem_bias: whether the stem's convolutions have a bias; the published net's have none.
            t1: integration time of the block, [0, t1].

        Raises:
            ConfigError: if the data set is not one of images, the images are too small, or a
                hyper-parameter is out of range.
        """
        super().__init__()
        require_task("ConvODE", info, "image")
        require_whole("ConvODE", width=width)
        require_positive("ConvODE", t1=t1)
        if len(info.input_shape) != 3:
            raise ConfigError(
                f"ConvODE needs input_shape (C, H, W), but data set '{info.name}' has "
                f"{tuple(info.input_shape)}"
            )
        self.input_shape = tuple(info.input_shape)
        channels, height, img_width = self.input_shape
        stem: list[nn.Module] = [nn.Conv2d(channels, width, 3, bias=stem_bias)]
        for _ in range(downsampling_convs(height, img_width)):
            stem += [nn.ReLU(), nn.Conv2d(width, width, 4, stride=2, padding=1, bias=stem_bias)]
        self.stem = nn.Sequential(*stem)
        self.ode = solver.block(ConvField(width), (0.0, t1))
        self.readout = nn.Linear(width, require_classes("ConvODE", info))

    @property
    def horizon(self) -> ODEBlock:
        """The block whose integration time may be trained (``configs/horizon``)."""
        return self.ode

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, (batch, num_classes), of images (batch, C, H, W).

        Raises:
            ConfigError: if the images do not have the shape that the net was built for.
        """
        if tuple(x.shape[1:]) != self.input_shape:
            raise ConfigError(
                f"ConvODE was built for images of {self.input_shape}, got a batch of "
                f"{tuple(x.shape)}"
            )
        z: Tensor = self.ode(self.stem(x))
        logits: Tensor = self.readout(torch.relu(z).mean(dim=(2, 3)))
        return logits
