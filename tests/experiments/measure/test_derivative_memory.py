"""What each way holds: formulas against the tensors themselves, and one measurement."""

from __future__ import annotations

import pytest

from experiments.measure import derivative_memory
from experiments.measure.derivative_memory import BYTES, WAYS, measure, run_kronecker, sizes, system
from snopt import Preconditioner
from snopt.theory.second_order import SecondOrder

BY_NAME = {way.name: way for way in WAYS}


@pytest.mark.parametrize("d", [2, 5])
def test_sizes_are_those_of_the_system(d: int) -> None:
    assert system(d, 0).sizes == sizes(d)


def test_formulas_count_what_is_returned() -> None:
    d = 3
    n, m = sizes(d)
    one = system(d, 0)
    dense = BY_NAME["theorem-1"].run(one)
    assert isinstance(dense, SecondOrder)
    held = [dense.z1, dense.Q_z, dense.Q_u, dense.Q_zz, dense.Q_uz, dense.Q_uu]
    assert BY_NAME["theorem-1"].theory(d) == sum(part.numel() for part in held)
    q, p = BY_NAME["proposition-2"].run(one)  # type: ignore[misc]
    assert BY_NAME["proposition-2"].theory(d) == n + q.numel() + p.numel()
    assert BY_NAME["recursion"].run(one).shape == (m, m)  # type: ignore[attr-defined]
    assert BY_NAME["recursion"].theory(d) == m * m + 2 * (2 * n + m)
    kept = run_kronecker(one)
    assert isinstance(kept, Preconditioner)
    factors = sum(pair.A.numel() + pair.B.numel() for pair in kept.curvature.values())
    assert BY_NAME["kronecker"].theory(d) == 2 * n + m + factors
    assert BY_NAME["first-order"].theory_mb(d) == (2 * n + m) * BYTES / 2**20


def test_recursion_fills_its_rows_of_the_matrix() -> None:
    one = system(2, 0)
    matrix = BY_NAME["recursion"].run(one)
    dense = BY_NAME["theorem-1"].run(one)
    assert isinstance(dense, SecondOrder)
    assert (matrix[1] == 1.0).sum() == 0  # type: ignore[index]
    assert (matrix[derivative_memory._ROWS :] == 1.0).all()  # type: ignore[index]


def test_measured_in_a_process_of_its_own_or_left_out() -> None:
    (row,) = measure(BY_NAME["theorem-1"], [8], [0])
    # The matrices, and a copy of them for each stage of dopri5 at least.
    assert 7 * row["theory_mb"] < row["measured_mb"] < 100 * row["theory_mb"]
    (row,) = measure(BY_NAME["theorem-1"], [512], [0, 1])
    assert row["seed"] is None
    assert row["measured_mb"] is None
    assert row["theory_mb"] > derivative_memory.LIMIT_MB
