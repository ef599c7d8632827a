"""The image net: state sizes, the field against its formula, gradients, refusals."""

from __future__ import annotations

import pytest
import torch
import torchdiffeq

from experiments.base.errors import ConfigError
from experiments.models.conv_ode import ConvODE, downsampling_convs
from experiments.models.fields import ConvField
from experiments.models.solver import SolverSettings


@pytest.mark.parametrize(
    ("channels", "size", "batch", "width", "state"),
    [(1, 28, 128, 64, (128, 64, 6, 6)), (3, 32, 2, 8, (2, 8, 7, 7)), (1, 8, 3, 4, (3, 4, 6, 6))],
)
def test_state_and_logit_shapes(make_info, channels, size, batch, width, state):
    model_info = make_info("image", (channels, size, size), 10)
    model = ConvODE(model_info, SolverSettings(), width=width)
    x = torch.randn(batch, channels, size, size)
    assert model.stem(x).shape == state
    assert model(x[:2]).shape == (2, 10)
    published = ConvODE(model_info, SolverSettings(), width=width, stem_bias=False)
    without = {name for name, _ in model.named_parameters()} - set(
        dict(published.named_parameters())
    )
    assert without == {
        name for name, _ in model.stem.named_parameters(prefix="stem") if "bias" in name
    }


@pytest.mark.parametrize(
    ("height", "width", "count"),
    [(6, 6, 0), (8, 8, 0), (9, 40, 0), (10, 10, 1), (16, 16, 1), (18, 18, 2), (224, 224, 2)],
)
def test_downsampling_rule(height, width, count):
    assert downsampling_convs(height, width) == count


def test_field_sees_the_time_as_a_constant_channel():
    field = ConvField(2).double()
    z, t = torch.randn(3, 2, 5, 5, dtype=torch.float64), torch.tensor(0.7, dtype=torch.float64)

    def conv(layer, x):
        spatial = torch.nn.functional.conv2d(x, layer.weight[:, 1:], layer.bias, padding=1)
        plane = torch.full((1, 1, 5, 5), 0.7, dtype=torch.float64)
        return spatial + torch.nn.functional.conv2d(plane, layer.weight[:, :1], padding=1)

    expected = conv(field.conv2, conv(field.conv1, z).relu())
    torch.testing.assert_close(field(t, z), expected)


def test_forward_equals_the_steps_one_by_one(make_info, tight):
    model = ConvODE(make_info("image", (1, 8, 8)), tight, width=3, t1=0.6).double()
    x = torch.randn(2, 1, 8, 8, dtype=torch.float64)
    times = torch.tensor([0.0, 0.6], dtype=torch.float64)
    z = torchdiffeq.odeint(model.ode.func, model.stem(x), times, rtol=1e-9, atol=1e-9)[-1]
    pooled = torch.nn.functional.adaptive_avg_pool2d(z.relu(), 1).flatten(1)
    torch.testing.assert_close(model(x), model.readout(pooled), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("gradient", ["adjoint", "direct"])
def test_gradient_reaches_every_parameter(make_info, gradient):
    model = ConvODE(make_info("image", (1, 8, 8)), SolverSettings(gradient=gradient), width=4)
    model(torch.randn(2, 1, 8, 8)).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_gradient_equals_finite_differences(make_info):
    # A fixed grid, so that the output is a smooth function of the weights.
    settings = SolverSettings(gradient="direct", method="rk4", options={"step_size": 0.25})
    model = ConvODE(make_info("image", (1, 8, 8)), settings, width=2).double()
    x = torch.randn(2, 1, 8, 8, dtype=torch.float64)

    def loss(weight):
        parameters = {"ode.func.conv1.weight": weight}
        return torch.func.functional_call(model, parameters, (x,)).square().sum()

    weight = model.ode.func.conv1.weight.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(loss, (weight,), eps=1e-7, atol=1e-5)


@pytest.mark.parametrize(
    ("task", "shape", "classes", "options", "message"),
    [
        ("image", (1, 5, 28), 10, {}, "5x28 are too small"),
        ("image", (28, 28), 10, {}, "needs input_shape"),
        ("time_series", (5, 3), 10, {}, "needs a data set of task 'image'"),
        ("image", (1, 8, 8), None, {}, "num_classes=None"),
        ("image", (1, 8, 8), 10, {"width": 0}, "width must be above 0"),
        ("image", (1, 8, 8), 10, {"t1": -1.0}, "t1 must be above 0"),
    ],
)
def test_what_does_not_fit_is_refused(make_info, task, shape, classes, options, message):
    with pytest.raises(ConfigError, match=message):
        ConvODE(make_info(task, shape, classes), SolverSettings(), **options)


def test_a_batch_of_another_size_is_refused(make_info):
    model = ConvODE(make_info("image", (1, 8, 8)), SolverSettings(), width=2)
    with pytest.raises(ConfigError, match=r"built for images of \(1, 8, 8\)"):
        model(torch.zeros(2, 1, 9, 8))
