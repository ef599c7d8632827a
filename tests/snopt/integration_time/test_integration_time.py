"""The integration time as a parameter: derivatives, steps, what it leaves alone and refuses."""

from __future__ import annotations

import copy
import io
import math

import pytest
import torch
from snopt_cases import TanhField, initial_state, make_field, parts_of
from torch import nn

from snopt import IntegrationTime, ODEBlock, SNOpt

COST = 0.03
TIGHT = {"rtol": 1e-10, "atol": 1e-12}
OPTIMIZERS = {
    "adam": lambda model: torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=0.1),
    "sgd": lambda model: torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
    "snopt": lambda model: SNOpt(model, lr=0.1, update_freq=2),
}


class Net(nn.Module):
    """Linear, ODE, linear; cross-entropy of two classes."""

    def __init__(self, gradient="adjoint", t=(0.0, 1.0), dropout=0.0, **solver):
        super().__init__()
        field = TanhField()
        if dropout:
            field.second = nn.Sequential(field.second, nn.Dropout(dropout))
        self.stem, self.head = nn.Linear(2, 3), nn.Linear(3, 2)
        self.ode = ODEBlock(field, t, gradient=gradient, **solver)

    def forward(self, x):
        return self.head(self.ode(self.stem(x)))


def make(seed=0, **kwargs):
    torch.manual_seed(seed)
    return Net(**kwargs).double()


def watched(name="sgd", net=None, **settings):
    """Return a net, its optimizer, and what watches its block."""
    model = make(**(net or {}))
    optimizer = OPTIMIZERS[name](model)
    return model, optimizer, IntegrationTime(model.ode, optimizer, **settings)


def batch(seed=1, n=16):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    return x, (x[:, 0] * x[:, 1] > 0).long()


def loss_of(model, data):
    return nn.functional.cross_entropy(model(data[0]), data[1])


def train(model, optimizer, steps, start=0):
    for k in range(start, start + steps):
        optimizer.zero_grad()
        loss_of(model, batch(1 + k)).backward()
        optimizer.step()


def weights(model):
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def second_difference(f, h):
    """Return f_aa, f_ab of f(a, b) at 0 by central differences."""
    aa = (f(h, 0.0) - 2 * f(0.0, 0.0) + f(-h, 0.0)) / h**2
    ab = (f(h, h) - f(h, -h) - f(-h, h) + f(-h, -h)) / (4 * h**2)
    return aa, ab


# The derivatives.


@pytest.mark.parametrize("gradient", ["adjoint", "direct", "checkpoint"])
@pytest.mark.parametrize("times", [(0.0, 1.3), (1.3, 0.2)], ids=["forward", "backward"])
@pytest.mark.parametrize("kind", ["tensor", "tuple"])
def test_first_order_is_the_derivative_of_the_loss_along_the_horizon(gradient, times, kind):
    block = ODEBlock(make_field(kind), times, gradient=gradient, **TIGHT)
    optimizer = torch.optim.SGD(block.parameters(), lr=0.1)
    exact = {"per_sample": False}
    horizon = IntegrationTime(block, optimizer, mode="baseline", every=1, cost=COST, **exact)

    def loss(state):
        return sum(((part - 0.3) ** 2).sum() for part in parts_of(state)) / 4

    def objective(T):
        t0, t1 = times
        with torch.no_grad():
            end = block(initial_state(kind), t=(t0, t0 + math.copysign(T, t1 - t0)))
        return float(loss(end)) + COST / 2 * T**2

    T = abs(times[1] - times[0])
    expected = (objective(T + 1e-4) - objective(T - 1e-4)) / 2e-4
    loss(block(initial_state(kind))).backward()
    optimizer.step()
    assert horizon.metrics["horizon/Q_T"] == pytest.approx(expected, rel=1e-6)
    # Descent: T shrinks where J grows with it, whichever way time runs.
    assert abs(horizon.t1 - times[0]) == pytest.approx(T - 0.1 * expected, rel=1e-6)
    assert math.copysign(1, horizon.t1 - times[0]) == math.copysign(1, times[1] - times[0])


class AffineInTime(nn.Module):
    """F = k + θ (1 - t): at t = 1 and θ = 0, z_TT and z_Tθ vanish."""

    def __init__(self):
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(3, dtype=torch.float64))
        self.k = torch.tensor([0.4, -0.2, 0.7], dtype=torch.float64)

    def forward(self, t, z):
        return (self.k + self.theta * (1 - t)).expand_as(z)


def log_likelihood(z):
    """Φ = -log of a function linear in z, for which Φ_zz = Φ_z Φ_zᵀ."""
    return -torch.log(5 + (z * torch.tensor([1.0, -0.5, 2.0], dtype=z.dtype)).sum(-1).mean())


def test_second_order_is_exact_where_nothing_is_dropped():
    z0 = initial_state("tensor").detach()
    block = ODEBlock(AffineInTime(), **TIGHT)
    optimizer = torch.optim.SGD(block.parameters(), lr=0.5)
    horizon = IntegrationTime(block, optimizer, cost=COST, every=1, per_sample=False)
    log_likelihood(block(z0)).backward()
    step = -0.5 * block.func.theta.grad.clone()

    def objective(a, b):
        with torch.no_grad():
            block.func.theta.copy_(b * step)
            T = 1.0 + a
            return float(log_likelihood(block(z0, t=(0.0, T)))) + COST / 2 * T**2

    Q_TT, feedback = second_difference(objective, 1e-3)
    with torch.no_grad():
        block.func.theta.zero_()
    optimizer.step()
    assert horizon.metrics["horizon/Q_TT"] == pytest.approx(Q_TT, rel=1e-5)
    assert horizon.metrics["horizon/feedback"] == pytest.approx(feedback, rel=1e-5)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("gradient", ["adjoint", "direct", "checkpoint"])
def test_feedback_is_the_gauss_newton_term_of_the_optimizers_own_step(name, gradient):
    """On a nonlinear field: the mixed second difference of Φ(z + F δT + z_θ δθ)."""
    z0 = initial_state("tensor").detach()
    model = nn.Sequential(ODEBlock(make_field("tensor"), (0.0, 1.3), gradient=gradient, **TIGHT))
    block = model[0]
    optimizer = OPTIMIZERS[name](model)
    horizon = IntegrationTime(block, optimizer, cost=COST, every=1, per_sample=False)
    old = {k: v.clone() for k, v in block.func.state_dict().items()}
    end = block(z0)
    log_likelihood(end).backward()
    optimizer.step()

    new = block.func.state_dict()
    difference = {k: new[k].clone() - old[k] for k in old}
    with torch.no_grad():

        def at(scale):
            block.func.load_state_dict({k: old[k] + scale * difference[k] for k in old})
            return block(z0, t=(0.0, 1.3))

        along = (at(1e-3) - at(-1e-3)) / 2e-3
        at(0.0)
        F = block.func(torch.tensor(1.3, dtype=torch.float64), end)
        Q_TT, feedback = second_difference(
            lambda a, b: float(log_likelihood(end + a * F + b * along)), 1e-3
        )
    assert horizon.metrics["horizon/Q_TT"] == pytest.approx(COST + Q_TT, rel=1e-4)
    assert horizon.metrics["horizon/feedback"] == pytest.approx(feedback, rel=1e-4)


def test_the_scale_does_not_depend_on_the_size_of_the_batch():
    found = []
    for copies in (1, 5):
        model, optimizer, horizon = watched(every=1, per_sample=False)
        x, y = batch()
        loss_of(model, (x.repeat(copies, 1), y.repeat(copies))).backward()
        optimizer.step()
        found.append(horizon.metrics)
    assert found[0] == pytest.approx(found[1], rel=1e-9)


# The steps.


@pytest.mark.parametrize("per_sample", [True, False])
@pytest.mark.parametrize("mode", ["baseline", "baseline_released", "feedback"])
def test_steps_and_averages_by_hand(mode, per_sample):
    """The release's formulas, in its own units: s there is ours over B, and so are Q_T and Q_TT."""
    model = make()
    optimizer = SNOpt(model, lr=0.05, update_freq=1)
    settings = {"lr": 0.2, "cost": COST, "every": 2, "decay": 0.6, "per_sample": per_sample}
    horizon = IntegrationTime(model.ode, optimizer, mode=mode, **settings)
    T, average = 1.0, None
    for k in range(6):
        optimizer.zero_grad()
        seen = []
        handle = model.ode.register_forward_hook(
            lambda block, args, out, seen=seen: (seen.append(out), out.retain_grad())[0]
        )
        loss_of(model, batch(1 + k)).backward()
        handle.remove()
        field = list(model.ode.func.parameters())
        before = [(p.detach().clone(), p.grad.clone()) for p in field]
        z = seen[0]
        B = len(z) if per_sample else 1
        with torch.no_grad():
            F = model.ode.func(torch.tensor(T, dtype=torch.float64), z)
            s = float((F * z.grad).sum()) / B
            released = float((F * (z.grad + COST * T)).sum()) / len(z)
        optimizer.step()
        moved = [p.detach() - was for p, (was, _) in zip(field, before, strict=True)]
        change = sum(float((g * d).sum()) for d, (_, g) in zip(moved, before, strict=True))
        now = torch.tensor([released, COST * T + s, COST + s**2], dtype=torch.float64)
        average = now if average is None else 0.6 * average + 0.4 * now  # at every step
        descent, Q_T, Q_TT = average.tolist()
        if k % 2 == 1:
            T -= (
                0.2
                * {
                    "baseline": B * Q_T,
                    "baseline_released": descent,
                    "feedback": (Q_T + s * change) / Q_TT,
                }[mode]
            )
        assert horizon.t1 == pytest.approx(T, rel=1e-10)
        expected = descent if mode == "baseline_released" else B * Q_T
        assert horizon.metrics["horizon/Q_T"] == pytest.approx(expected, rel=1e-10)
    assert horizon.updates == 3


class Growth(nn.Module):
    """dz/dt = θ z."""

    def __init__(self):
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

    def forward(self, t, z):
        return self.theta * z


def updates_to_optimum(mode, start):
    """Minimise log(1 + 1/z(T)) + c/2 (T² + θ²), whose minimum has T = θ, c = 1 / (1 + e^(T²))."""
    c = 0.05
    optimum = math.sqrt(math.log(1 / c - 1))
    block = ODEBlock(Growth(), (0.0, start), method="rk4", options={"step_size": 0.5})
    optimizer = torch.optim.SGD(block.parameters(), lr=0.5, weight_decay=c)
    horizon = IntegrationTime(block, optimizer, mode=mode, lr=0.12, cost=c, every=1, decay=0.75)
    for k in range(1000):
        theta = float(block.func.theta.detach())
        if abs(horizon.t1 - optimum) < 0.01 and abs(theta - optimum) < 0.05:
            return k
        optimizer.zero_grad()
        torch.log1p(1 / block(torch.ones(1, dtype=torch.float64))).sum().backward()
        optimizer.step()
    raise AssertionError(f"{mode} ends at {horizon.t1}, not {optimum}")


@pytest.mark.parametrize("start", [0.5, 4.0])
def test_feedback_reaches_a_known_optimum_in_fewer_updates_than_the_baseline(start):
    feedback = updates_to_optimum("feedback", start)
    baseline = updates_to_optimum("baseline", start)
    assert 5 < feedback < baseline / 2, (feedback, baseline)


# In training.


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_watching_changes_no_bit_of_the_training(name):
    """An η so small that t1 stays: weights and random numbers are those of a run without it."""
    plain = make(dropout=0.3)
    train(plain, OPTIMIZERS[name](plain), 5)
    after = torch.rand(1)
    torch.manual_seed(0)
    model, optimizer, horizon = watched(name, {"dropout": 0.3}, every=1, lr=1e-300)
    train(model, optimizer, 5)
    assert horizon.updates == 5
    assert torch.equal(weights(plain), weights(model))
    assert torch.equal(after, torch.rand(1))


def test_a_step_costs_one_evaluation_and_any_other_pass_none():
    model, optimizer, horizon = watched("adam", every=3, lr=1e-3)
    counts = []
    for k in range(7):
        train(model, optimizer, 1, start=k)
        with torch.no_grad():  # an evaluation of the model is no step
            model(batch()[0])
        counts.append(model.ode.nfe.curvature)
    assert counts == [1, 2, 3, 4, 5, 6, 7]
    assert (horizon.steps, horizon.updates) == (7, 2)


@pytest.mark.parametrize(
    ("mode", "names"),
    [("fixed", set()), ("baseline", {"Q_T"}), ("feedback", {"Q_T", "Q_TT", "feedback"})],
)
def test_metrics_name_what_the_mode_has(mode, names):
    model, optimizer, horizon = watched(net={"t": (0.0, 0.7)}, mode=mode, every=2)
    assert horizon.metrics == {"horizon/t1": 0.7}
    train(model, optimizer, 1)
    assert horizon.due == (mode != "fixed")
    assert horizon.t1 == 0.7
    train(model, optimizer, 1)
    assert set(horizon.metrics) == {"horizon/t1", *(f"horizon/{name}" for name in names)}
    assert (horizon.t1 == 0.7, model.ode.nfe.curvature == 0) == ((mode == "fixed",) * 2)


@pytest.mark.parametrize("set_to_none", [True, False])
def test_accumulated_gradients_are_one_and_zeroed_ones_are_none(set_to_none):
    """Two halves make the whole; passes that were zeroed or end elsewhere do not count."""
    found = []
    x, y = batch(n=8)
    for pieces in ([slice(0, 8)], [slice(0, 4), slice(4, 8)]):
        model, optimizer, horizon = watched(net=TIGHT, every=1)
        loss_of(model, batch(seed=9)).backward()
        optimizer.zero_grad(set_to_none=set_to_none)
        for piece in pieces:
            if len(pieces) > 1:  # an attack
                inputs = x[piece].clone().requires_grad_()
                torch.autograd.grad(loss_of(model, (inputs, y[piece])), inputs)
            (loss_of(model, (x[piece], y[piece])) / len(pieces)).backward()
        optimizer.step()
        found.append(horizon.metrics)
    assert found[0] == pytest.approx(found[1], rel=1e-6)


def test_a_loss_of_an_earlier_step_does_not_count():
    model = make()
    # An optimizer of something else: the earlier graph stays usable.
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    horizon = IntegrationTime(model.ode, optimizer, mode="baseline", every=1, lr=1e-300, decay=0.0)
    stale = loss_of(model, batch())
    loss_of(model, batch()).backward()
    optimizer.step()
    expected = horizon.metrics
    loss_of(model, batch()).backward()
    stale.backward()
    optimizer.step()
    assert horizon.updates == 2
    assert horizon.metrics == expected


def test_a_block_used_twice_has_the_whole_derivative():
    block = ODEBlock(make_field("tensor"), (0.0, 0.8), **TIGHT)
    optimizer = torch.optim.SGD(block.parameters(), lr=0.0)
    horizon = IntegrationTime(block, optimizer, mode="baseline", every=1, cost=0.0, lr=0.01)
    z0 = initial_state("tensor").detach()

    def loss_at(z):
        return (z**2).sum(-1).mean()

    def loss(T):
        with torch.no_grad():
            return float(loss_at(block(block(z0, t=(0.0, T)), t=(0.0, T))))

    loss_at(block(block(z0))).backward()
    optimizer.step()
    expected = (loss(0.8 + 1e-4) - loss(0.8 - 1e-4)) / 2e-4
    assert horizon.metrics["horizon/Q_T"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", ["adam", "snopt"])
def test_loss_scaling_does_not_change_the_time(name):
    found = []
    for scale in (None, 1024.0):
        model, optimizer, horizon = watched(name, every=1, lr=1e-3)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0, enabled=scale is not None)
        for k in range(3):
            optimizer.zero_grad()
            scaler.scale(loss_of(model, batch(k))).backward()
            if name == "adam" and scale:  # SNOpt is told the scale by the scaler
                horizon.loss_scale = scaler.get_scale()
            scaler.step(optimizer)
            scaler.update()
        found.append(horizon.metrics)
    assert found[0] == pytest.approx(found[1], rel=1e-4)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_resumed_equals_unbroken(name):
    unbroken, optimizer, horizon = watched(name, every=3, lr=0.02)
    train(unbroken, optimizer, 11)

    first, optimizer, part = watched(name, every=3, lr=0.02)
    train(first, optimizer, 5)
    file = io.BytesIO()
    torch.save((first.state_dict(), optimizer.state_dict(), part.state_dict()), file)
    file.seek(0)
    states = torch.load(file, weights_only=True)
    second, optimizer, part = watched(name, {"seed": 5}, every=3, lr=0.02)
    for target, state in zip((second, optimizer, part), states, strict=True):
        target.load_state_dict(state)
    train(second, optimizer, 6, start=5)
    assert torch.equal(weights(unbroken), weights(second))
    assert part.metrics == horizon.metrics
    assert part.state_dict() == horizon.state_dict()
    assert horizon.t1 != 1.0


def test_a_copied_model_is_not_followed():
    model, optimizer, horizon = watched("snopt", every=1)
    other = copy.deepcopy(model)
    loss_of(model, batch())  # without a backward pass
    loss_of(other, batch()).backward()
    with pytest.warns(RuntimeWarning, match="no gradient has arrived"):
        optimizer.step()
    assert horizon.updates == 0
    assert other.ode.nfe.curvature == 0


def test_it_lives_as_long_as_the_optimizer_and_no_longer():
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    IntegrationTime(model.ode, optimizer, every=1)
    train(model, optimizer, 1)
    moved = float(model.ode.t[-1])
    assert moved != 1.0
    del optimizer
    train(model, torch.optim.SGD(model.parameters(), lr=0.1), 1)
    assert float(model.ode.t[-1]) == moved


def test_half_precision_parameters():
    model = make().to(torch.bfloat16)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    horizon = IntegrationTime(model.ode, optimizer, every=1, lr=1e-3)
    x, y = batch()
    loss_of(model, (x.bfloat16(), y)).backward()
    optimizer.step()
    assert horizon.updates == 1
    assert 0 < abs(horizon.t1 - 1.0) < 0.5
    assert model.ode.t.dtype == torch.float64  # the times keep their precision


# Reports and refusals.


def test_the_lower_bound_holds_and_is_reported_once():
    model, optimizer, horizon = watched(mode="baseline", every=1, cost=50.0, minimum=0.25)
    with pytest.warns(RuntimeWarning, match=r"lower bound 0\.25") as caught:
        train(model, optimizer, 4)
    assert len(caught) == 1
    assert horizon.t1 == 0.25
    assert horizon.updates == 4


def test_a_start_below_the_bound_is_lifted_to_it():
    short = {"t": (0.0, 0.05)}
    model, optimizer, horizon = watched(net=short, mode="baseline", every=2, lr=1e-9)
    train(model, optimizer, 1)
    assert horizon.t1 == 0.05
    with pytest.warns(RuntimeWarning, match="lower bound"):
        train(model, optimizer, 1, start=1)
    assert horizon.t1 == 0.1


@pytest.mark.filterwarnings("error")
def test_no_gradient_is_reported_once_and_the_update_made_up_for():
    model, optimizer, horizon = watched(every=2)
    model.head(torch.ones(1, 3, dtype=torch.float64)).sum().backward()
    optimizer.step()
    with pytest.warns(RuntimeWarning, match="no gradient has arrived"):
        optimizer.step()
    optimizer.step()  # a second warning would be an error here
    train(model, optimizer, 1)
    assert (horizon.updates, horizon.steps) == (1, 4)


def test_a_gradient_that_is_not_finite_moves_nothing():
    # A backward solve would refuse it first.
    model, optimizer, horizon = watched(net={"gradient": "direct"}, every=1)
    (loss_of(model, batch()) * math.inf).backward()
    optimizer.step()
    assert horizon.t1 == 1.0
    assert horizon.updates == 0


@pytest.mark.parametrize(
    ("block", "error", "message"),
    [
        (lambda: ODEBlock(TanhField(), return_all=True), ValueError, "read its state at 2 times"),
        (lambda: ODEBlock(TanhField(), (0.0, 0.5, 1.0)), ValueError, "at 3 times"),
        (
            lambda: ODEBlock(TanhField(), torch.tensor([0.0, 1.0], requires_grad=True)),
            ValueError,
            "gradient of their own",
        ),
        (TanhField, TypeError, r"ODEBlock, got TanhField.*event solve"),
    ],
)
def test_an_end_that_cannot_be_moved_is_refused(block, error, message):
    made = block()
    optimizer = torch.optim.SGD(made.parameters(), lr=0.1)
    with pytest.raises(error, match=message):
        IntegrationTime(made, optimizer)


def test_other_times_at_the_call_are_refused():
    block = ODEBlock(make_field("tensor"))
    optimizer = torch.optim.SGD(block.parameters(), lr=0.1)
    IntegrationTime(block, optimizer, every=1)
    with torch.no_grad():
        block(initial_state("tensor"), (0.0, 0.5))
    for args, kwargs in (((0.0, 0.5),), {}), ((), {"t": (0.0, 0.5)}):
        with pytest.raises(ValueError, match="called with other times"):
            block(initial_state("tensor"), *args, **kwargs)


def test_a_closure_is_refused():
    model = make()
    optimizer = torch.optim.LBFGS(model.parameters())
    IntegrationTime(model.ode, optimizer)
    with pytest.raises(ValueError, match="without a closure"):
        optimizer.step(lambda: loss_of(model, batch()))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "newton"}, "mode must be one of fixed, baseline, .*feedback, got 'newton'"),
        ({"lr": 0.0}, "lr .* greater than 0, got 0.0"),
        ({"lr": math.nan}, "lr .* greater than 0, got nan"),
        ({"cost": -1.0}, "cost .* at least 0, got -1.0"),
        ({"cost": 0.0}, "cost .* above 0 for feedback"),
        ({"every": 0}, "every .* at least 1, got 0"),
        ({"every": 1.5}, "every .* integer of at least 1, got 1.5"),
        ({"minimum": 0.0}, "minimum .* greater than 0"),
        ({"decay": 1.0}, r"decay .* \[0, 1\), got 1.0"),
        ({"per_sample": 1}, "per_sample"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        watched(**settings)


def test_an_optimizer_is_needed():
    with pytest.raises(TypeError, match="Optimizer, got list"):
        IntegrationTime(make().ode, [])


def test_a_state_of_another_mode_is_refused():
    state = watched(mode="baseline")[2].state_dict()
    with pytest.raises(ValueError, match="'baseline', this is 'feedback'"):
        watched()[2].load_state_dict(state)
