"""Vector fields F(t, z) of the image and the time-series model.

Every learnable layer is an ordinary ``nn.Linear`` or ``nn.Conv2d`` that is called as a module, so
that forward hooks see it, and the leading dimension of what it sees is the batch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ConvField(nn.Module):
    """Two 3×3 convolutions on [t, z] with a ReLU between, as in the published image net.

    Both convolutions see the time as one more, constant, input channel.
    """

    def __init__(self, channels: int) -> None:
        """Build the field for a state of ``channels`` channels."""
        super().__init__()
        self.conv1 = nn.Conv2d(channels + 1, channels, kernel_size=3, padding=1)
        self.conv2 = nn.Conv2d(channels + 1, channels, kernel_size=3, padding=1)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        """Return dz/dt, shape (batch, C, H, W), at time ``t`` (scalar) and state ``z``."""
        h = torch.relu(self.conv1(with_time_channel(t, z)))
        out: Tensor = self.conv2(with_time_channel(t, h))
        return out


class MLPField(nn.Module):
    """Linear layers with tanh between, the published field of the ODE-RNN.

    The field is autonomous: time enters an ODE-RNN through the length of each interval.
    """

    def __init__(self, dim: int, layers: int = 4) -> None:
        """Build ``layers`` linear layers (the paper has 4) of the state's size ``dim``."""
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(dim, dim) for _ in range(layers))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        """Return dz/dt, shape (batch, dim); ``t`` is not used."""
        for layer in self.layers[:-1]:
            z = torch.tanh(layer(z))
        out: Tensor = self.layers[-1](z)
        return out


def with_time_channel(t: Tensor, z: Tensor) -> Tensor:
    """Return [t, z]: ``z`` (batch, C, H, W) with a constant first channel of value ``t``."""
    channel = t.to(z).expand(z.shape[0], 1, *z.shape[2:])
    return torch.cat([channel, z], dim=1)
