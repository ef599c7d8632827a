"""The Runge-Kutta engine against torchdiffeq: steps, results, gradients, cost."""

from __future__ import annotations

import pytest
import torch
import torchdiffeq
from hypothesis import given, settings
from hypothesis import strategies as st
from snopt_cases import assert_close, initial_state, make_field, parts_of, scalar_loss, times_for
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import snopt
from snopt import NFE, ODEBlock
from snopt.solve.field import Field
from snopt.solve.runge_kutta import takes
from snopt.solve.solver import Solver, StepMemory
from snopt.solve.tableau import TABLEAUX

ADAPTIVE = [name for name, tableau in TABLEAUX.items() if tableau.adaptive]
GRID = [name for name, tableau in TABLEAUX.items() if not tableau.adaptive]


@pytest.mark.parametrize("method", list(TABLEAUX))
def test_observed_order(method):
    """Halving the step divides the error at the end by 2^p."""
    field, z0, t = make_field("tensor"), initial_state("tensor").detach(), times_for("forward", 2)
    with torch.no_grad():
        exact = torchdiffeq.odeint(field, z0, t, rtol=1e-12, atol=1e-13)[-1]
    errors = []
    cells = 4 if method == "dopri5" else 16
    for step in (1.1 / cells, 1.1 / (2 * cells)):
        if method in GRID:
            kwargs = {"options": {"step_size": step}}
        else:  # every step of the same length
            options = {"first_step": step, "max_step": step, "min_step": step}
            kwargs = {"options": options, "rtol": 1e9, "atol": 1e9}
        with torch.no_grad():
            end = snopt.odeint(field, z0, t, method=method, **kwargs)[-1]
        errors.append(float((end - exact).abs().max()))
    order = TABLEAUX[method].order
    assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.35)


def solve_both(method, kind, direction, count, dtype, tolerance, *, options=None):
    """Return (solution, gradients, NFE) on the engine and on torchdiffeq's seminorm adjoint."""
    results = []
    for engine in ("auto", "torchdiffeq"):
        field, nfe = make_field(kind).to(dtype), NFE()
        y0 = tuple(p.detach().to(dtype).requires_grad_() for p in parts_of(initial_state(kind)))
        t = times_for(direction, count).to(dtype)
        options = options or ({"step_size": 0.05} if method in GRID else {})
        solution = snopt.odeint_adjoint(
            field,
            y0 if kind == "tuple" else y0[0],
            t,
            rtol=tolerance,
            atol=tolerance / 10,
            method=method,
            options=options,
            adjoint_options={**options, "norm": "seminorm"},
            nfe=nfe,
            engine=engine,
        )
        gradients = torch.autograd.grad(scalar_loss(solution), [*y0, *field.parameters()])
        results.append(([p.detach() for p in parts_of(solution)], gradients, nfe))
    return results


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    method=st.sampled_from([*ADAPTIVE, *GRID]),
    kind=st.sampled_from(["tensor", "tuple"]),
    direction=st.sampled_from(["forward", "backward"]),
    count=st.sampled_from([2, 3]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    tolerance=st.sampled_from([1e-3, 1e-4]),
)
def test_gradients_equal_torchdiffeqs_seminorm_adjoint(
    method, kind, direction, count, dtype, tolerance
):
    ours, theirs = solve_both(method, kind, direction, count, dtype, tolerance)
    # bosh3 and fehlberg2 interpolate output times less well than they step: torchdiffeq's results
    # carry that error, the engine lands on its last output time. Their exact value decides.
    exact, _ = solve_both("dopri5", kind, direction, count, torch.float64, 1e-10)
    for a, b, c in zip(ours[1], theirs[1], exact[1], strict=True):
        scale = float(c.abs().max())
        own = float((a - c).abs().max()) / scale
        other = float((b - c).abs().max()) / scale
        apart = float((a - b).abs().max()) / scale
        assert apart <= 10 * tolerance + 2 * other
        assert own <= other + 10 * tolerance


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize(
    ("kind", "count", "options"),
    [("tensor", 4, {}), ("tuple", 2, {}), ("tuple", 4, {}), ("tensor", 2, {"first_step": 1.1})],
)
def test_gradients_equal_to_1e_9_at_tight_tolerance(kind, count, options, direction):
    """With a first step that is rejected many times in a row, too."""
    case = ("dopri5", kind, direction, count, torch.float64, 1e-13)
    ours, theirs = solve_both(*case, options=options)
    for a, b in zip(ours[1], theirs[1], strict=True):
        assert_close(a, b, rtol=1e-9)


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("kind", ["tensor", "tuple"])
@pytest.mark.parametrize("method", ADAPTIVE)
def test_step_sequences_are_torchdiffeqs_but_for_the_last(method, kind, direction):
    tolerance = 1e-5 if method in ("adaptive_heun", "fehlberg2") else 1e-7
    ours, theirs = solve_both(method, kind, direction, 2, torch.float64, tolerance)
    one_step = TABLEAUX[method].stages
    assert abs(ours[2].forward - theirs[2].forward) <= one_step
    assert abs(ours[2].backward - theirs[2].backward) <= one_step


@pytest.mark.parametrize(
    "options",
    [
        {"first_step": 0.01},
        {"max_step": 0.05},
        {"safety": 0.7, "ifactor": 3.0, "dfactor": 0.5},
        {"min_step": 0.1},
        {"norm": lambda y: y.abs().max()},
    ],
    ids=["first_step", "max_step", "factors", "min_step", "norm"],
)
def test_options_of_step_size_control(options):
    field, z0, t = make_field("tensor"), initial_state("tensor").detach(), times_for("forward", 2)
    counts = []
    for engine in ("auto", "torchdiffeq"):
        nfe = NFE()
        with torch.no_grad():
            snopt.odeint(
                field, z0, t, rtol=1e-6, atol=1e-8, options=options, nfe=nfe, engine=engine
            )
        counts.append(nfe.forward)
    assert abs(counts[0] - counts[1]) <= 6


@pytest.mark.parametrize("method", list(TABLEAUX))
@pytest.mark.parametrize("interp", ["linear", "cubic"])
def test_output_times_are_torchdiffeqs_dense_output(method, interp):
    field, z0 = make_field("tensor"), initial_state("tensor").detach()
    t = torch.tensor([0.2, 0.31, 0.5, 0.52, 1.3], dtype=torch.float64)
    options = {"step_size": 0.3, "interp": interp} if method in GRID else {}
    kwargs = {"rtol": 1e-4, "atol": 1e-5, "method": method, "options": options}
    with torch.no_grad():
        ours = snopt.odeint(field, z0, t, **kwargs)
        theirs = snopt.odeint(field, z0, t, engine="torchdiffeq", **kwargs)
    # All but the last lie within steps that both take.
    assert_close(ours[:-1], theirs[:-1], rtol=1e-10)


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_never_evaluates_beyond_the_interval(direction):
    field, seen = make_field("tensor"), []
    field.register_forward_hook(lambda _, args, out: seen.append(float(args[0].detach())))
    solution = snopt.odeint_adjoint(field, initial_state("tensor"), times_for(direction, 3))
    scalar_loss(solution).backward()
    assert min(seen) >= 0.2
    assert max(seen) <= 1.3


class _CountSyncs(TorchDispatchMode):
    """Counts what would make a GPU wait: reading a scalar."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._local_scalar_dense.default:
            self.count += 1
        return func(*args, **(kwargs or {}))


def test_one_synchronisation_for_each_step():
    class Autonomous(nn.Module):
        def forward(self, t, z):
            return -z + torch.sin(z)

    z0, t = initial_state("tensor").detach(), times_for("forward", 2)
    memory, nfe = StepMemory(), NFE()
    memory.keep("forward", 0.01)
    with torch.no_grad(), _CountSyncs() as mode:
        snopt.odeint(Autonomous(), z0, t, rtol=1e-9, atol=1e-10, nfe=nfe, memory=memory)
    steps = (nfe.forward - 1) // 6
    assert steps > 10
    # The times once, each step's error, and whether the result is finite.
    assert mode.count <= steps + 6


@pytest.mark.parametrize("method", list(TABLEAUX))
@pytest.mark.parametrize("kind", ["tensor", "tuple"])
def test_checkpoint_equals_direct_to_rounding(method, kind):
    options = {"step_size": 0.07, "interp": "cubic"} if method in GRID else {}
    for direction in ("forward", "backward"):
        results = []
        for odeint in (snopt.odeint, snopt.odeint_checkpoint):
            field, y0 = make_field(kind), initial_state(kind)
            t = times_for(direction, 4)
            solution = odeint(field, y0, t, rtol=1e-4, atol=1e-5, method=method, options=options)
            inputs = [*parts_of(y0), *field.parameters()]
            results.append(torch.autograd.grad(scalar_loss(solution), inputs))
        for a, b in zip(*results, strict=True):
            assert_close(b, a, rtol=1e-12)


def test_direct_on_the_engine_equals_torchdiffeqs_at_tight_tolerance():
    gradients = []
    for engine in ("auto", "torchdiffeq"):
        field, z0 = make_field("tensor"), initial_state("tensor")
        solution = snopt.odeint(
            field, z0, times_for("forward", 3), rtol=1e-11, atol=1e-12, engine=engine
        )
        gradients.append(torch.autograd.grad(scalar_loss(solution), [z0, *field.parameters()]))
    for a, b in zip(*gradients, strict=True):
        assert_close(a, b, rtol=1e-8)


def test_checkpoint_through_a_block_and_its_refusals():
    field, z0 = make_field("tensor"), initial_state("tensor")
    block = ODEBlock(field, gradient="checkpoint", rtol=1e-5, atol=1e-6)
    optimizer = snopt.SNOpt(block, lr=0.01)
    block(z0).square().mean().backward()
    optimizer.step()
    assert set(optimizer.curvature) == {field.first, field.second}
    assert block.nfe.curvature > 0
    t = times_for("forward", 2)
    with pytest.raises(ValueError, match="needs the project's own engine"):
        snopt.odeint_checkpoint(field, z0, t, method="dopri8")
    with pytest.raises(ValueError, match="needs the project's own engine"):
        ODEBlock(field, gradient="checkpoint", engine="torchdiffeq")
    with pytest.raises(ValueError, match="no gradient to t"):
        snopt.odeint_checkpoint(field, z0, t.clone().requires_grad_())
    with pytest.raises(ValueError, match="adjoint_params"):
        snopt.odeint_checkpoint(lambda t, z: z, z0, t)


@pytest.mark.parametrize("method", list(TABLEAUX))
def test_steps_quadrature_reuses_evaluations(method):
    """The trapezoid over the backward solver's own steps, at no evaluation where FSAL allows."""
    results = {}
    for name, rule in (("steps", snopt.steps()), ("gauss", snopt.gauss_legendre(8))):
        field, nfe = make_field("tensor"), NFE()
        optimizer = snopt.SNOpt(field, lr=0.0, quadrature=rule)
        tolerance = 1e-5 if method in ("adaptive_heun", "fehlberg2") else 1e-9
        solution = snopt.odeint_adjoint(
            field,
            initial_state("tensor"),
            times_for("forward", 2),
            rtol=tolerance,
            atol=tolerance / 10,
            method=method,
            options={"step_size": 0.02} if method in GRID else {},
            nfe=nfe,
        )
        scalar_loss(solution).backward()
        optimizer.step()
        curvature = optimizer.curvature
        results[name] = (curvature[field.first], curvature[field.second], nfe)
    *layers, nfe = results["steps"]
    *others, other_nfe = results["gauss"]
    if TABLEAUX[method].ends_on_a_stage:
        assert nfe.curvature == 0
    assert nfe.backward == other_nfe.backward
    for layer, other in zip(layers, others, strict=True):
        assert layer.weight == pytest.approx(1.1)
        assert_close(layer.A, other.A, rtol=0.02)
        assert_close(layer.B, other.B, rtol=0.02)


def test_steps_quadrature_needs_the_engine():
    field = make_field("tensor")
    optimizer = snopt.SNOpt(field, lr=0.1, quadrature=snopt.steps())
    solution = snopt.odeint_adjoint(
        field, initial_state("tensor"), times_for("forward", 2), method="dopri8"
    )
    with pytest.raises(ValueError, match="needs the project's own engine"):
        scalar_loss(solution).backward()
    assert optimizer.curvature == {}


def test_reused_steps_save_evaluations_and_keep_the_tolerance():
    field, z0 = make_field("tensor"), initial_state("tensor").detach()
    counts, ends = [], []
    for reuse in (False, True):
        block = ODEBlock(field, (0.0, 0.1), rtol=1e-6, atol=1e-7, reuse_step=reuse)
        z = z0
        for _ in range(10):
            z = block(z)
        z.square().sum().backward()
        counts.append(block.nfe)
        ends.append(z.detach())
    assert counts[1].forward < counts[0].forward
    assert counts[1].backward < counts[0].backward
    assert_close(ends[1], ends[0], rtol=1e-5)


def test_a_saved_block_continues_with_its_step_size():
    field, z0 = make_field("tensor"), initial_state("tensor").detach()
    first, second = (ODEBlock(field, rtol=1e-6, atol=1e-7, reuse_step=True) for _ in range(2))
    first(z0)
    second.load_state_dict(first.state_dict())
    assert torch.equal(second(z0), first(z0))
    assert "memory.sizes" not in ODEBlock(field).state_dict()


@pytest.mark.parametrize(
    ("method", "options", "dtype", "expected"),
    [
        ("dopri5", {}, torch.float32, True),
        ("dopri5", {"first_step": 0.1, "max_num_steps": 9}, torch.float64, True),
        ("rk4", {"step_size": 0.1, "interp": "cubic"}, torch.float32, True),
        ("dopri8", {}, torch.float32, False),
        ("implicit_adams", {}, torch.float32, False),
        ("dopri5", {"step_t": torch.tensor([0.5])}, torch.float32, False),
        ("rk4", {"grid_constructor": lambda f, y, t: t}, torch.float32, False),
        ("dopri5", {}, torch.bfloat16, False),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_the_engine_takes(method, options, dtype, expected):
    field = Field(make_field("tensor"), torch.zeros(2, 3, dtype=dtype))
    assert takes(Solver(method, options=options), field) is expected


def test_what_the_engine_does_not_take_runs_on_torchdiffeq():
    field, z0, t = make_field("tensor"), initial_state("tensor"), times_for("forward", 3)
    options = {"step_t": torch.tensor([0.7], dtype=torch.float64)}
    ours = snopt.odeint_adjoint(field, z0, t, rtol=1e-4, method="dopri5", options=options)
    theirs = torchdiffeq.odeint(field, z0, t, rtol=1e-4, method="dopri5", options=options)
    assert torch.equal(ours.detach(), theirs.detach())


def test_tolerances_by_part():
    field, y0, t = make_field("tuple"), initial_state("tuple"), times_for("forward", 2)
    with torch.no_grad():
        loose, tight = NFE(), NFE()
        snopt.odeint(field, y0, t, rtol=(1e-3, 1e3), atol=(1e-4, 1e3), nfe=loose)
        snopt.odeint(field, y0, t, rtol=(1e-8, 1e3), atol=(1e-9, 1e3), nfe=tight)
    assert tight.forward > loose.forward
    with pytest.raises(ValueError, match="1 tolerances were given for a state of 2 parts"):
        snopt.odeint(field, y0, t, rtol=(1e-3,))


def test_stiff_trial_steps_that_overflow_are_retried():
    """A stage that leaves the finite numbers is a rejected step, not the end of the solve."""

    class Overflowing(nn.Module):
        def forward(self, t, z):
            return torch.exp(torch.exp(5 * z)) * -1e-3

    z0 = torch.tensor([0.3], dtype=torch.float64)
    t = torch.tensor([0.0, 1.0], dtype=torch.float64)
    options = {"first_step": 1e3}
    with torch.no_grad():
        end = snopt.odeint(Overflowing(), z0, t, rtol=1e-8, atol=1e-9, options=options)[-1]
        exact = torchdiffeq.odeint(Overflowing(), z0, t, rtol=1e-11, atol=1e-12)[-1]
    assert_close(end, exact, rtol=1e-6)
