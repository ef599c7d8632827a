"""Two ranks against one process, in float64."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import ranks_cases
import torch
from ranks_cases import CASES, Net, start_ranks, train

from snopt import SNOpt
from snopt.curvature.factors import THIN_FROM
from snopt.precondition.ranks import Ranks, assign


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What two ranks found, one entry a rank."""
    folder = tmp_path_factory.mktemp("ranks")
    return start_ranks(Path(ranks_cases.__file__), folder, 2)


def close(found, expected, tolerance):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=tolerance, atol=tolerance, msg=name)


@pytest.mark.parametrize(
    ("name", "microbatches"),
    [(name, 1) for name in CASES if name not in ("time", "thin", "shrinking")]
    + [(name, 2) for name in ("snopt", "kfac", "time", "thin", "shrinking")],
)
def test_two_ranks_do_what_one_does_with_all_rows_or_microbatches(two, name, microbatches):
    one = train(CASES[name], microbatches=microbatches)
    for rank in two:
        for layer, factors in one["factors"].items():
            close(rank[name]["factors"][layer], factors, 1e-6)
        close(rank[name]["weights"], one["weights"], 1e-5)
        assert rank[name]["unused"]


def test_columns_of_all_ranks_make_one_thin_factor(two):
    one = train(CASES["thin"], microbatches=2)["bases"]
    _, out, columns = one["ode.func.gate"]
    assert out == THIN_FROM
    assert 1 < columns <= 2 * 4  # at four nodes on each rank
    assert all(rank["thin"]["bases"] == one for rank in two)


@pytest.mark.parametrize("name", CASES)
def test_ranks_have_the_same_weights_to_the_last_bit(two, name):
    first, second = (rank[name]["weights"] for rank in two)
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_decompositions_reach_every_rank(two):
    for rank in two:
        for (groups, d), basis, inverse in zip(
            ranks_cases.SIZES, rank["pieces"]["bases"], rank["pieces"]["inverses"], strict=True
        ):
            if d == 4:  # the matrix that is not finite
                assert basis is None
                assert inverse is None
                continue
            values, vectors = basis
            diagonal = torch.arange(1.0, d + 1, dtype=values.dtype)
            torch.testing.assert_close(values, diagonal.expand(groups, d))
            torch.testing.assert_close(vectors.abs(), torch.eye(d).expand(groups, d, d).to(values))
            assert vectors.is_contiguous()
            torch.testing.assert_close(inverse.diagonal(dim1=1, dim2=2), 1 / values)
        assert rank["pieces"]["bases"][3][0].dtype == torch.float64
        assert rank["pieces"]["bases"][1][0].dtype == torch.float32


def test_gradients_are_weighted_and_none_stays_none_where_no_rank_has_one(two):
    for rank in two:
        p, q, r = rank["pieces"]["gradients"]
        torch.testing.assert_close(p, torch.full((2,), (1 * 1 + 3 * 2) / 4))
        torch.testing.assert_close(q, torch.full((2,), 3 / 4))
        assert r is None


def test_a_layer_with_data_on_one_rank_gets_that_rank_s_factors(two):
    first, second = (rank["pieces"]["lonely"] for rank in two)
    for layer, factors in second.items():
        close(first[layer], factors, 0)
    assert first["decode"]["batch"] == ranks_cases.ROWS
    assert first["encode"]["batch"] == 2 * ranks_cases.ROWS


def test_what_ranks_cannot_do_is_refused(two):
    for rank in two:
        assert "gathers more than factors" in rank["pieces"]["refusal"]
        assert "the shape of the factors of layer layer" in rank["pieces"]["mismatch"]


def test_without_a_process_group_the_answer_says_what_to_do():
    with pytest.raises(RuntimeError, match=r"init_process_group\(\) first"):
        SNOpt(Net()).distribute()
    with pytest.raises(RuntimeError, match="no process group"):
        Ranks()


def test_work_is_shared_out_the_longest_first():
    costs = [d**3 for d in (10, 9, 4, 8, 3)]
    owners = assign(costs, 2)
    assert owners == [0, 1, 0, 1, 0]
    loads = [sum(c for c, o in zip(costs, owners, strict=True) if o == rank) for rank in (0, 1)]
    assert max(loads) == 729 + 512
    assert assign([], 2) == []
    assert assign([1.0], 1) == [0]


ENDING = """
import os, sys, time
import torch
import torch.distributed as dist
import snopt

def threads():
    return [open(f"/proc/self/task/{t}/comm").read().strip() for t in os.listdir("/proc/self/task")]

dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=0, world_size=1)
deadline = time.monotonic() + 60  # a thread has its name some time after it was started
while not any("gloo" in name for name in threads()):
    assert time.monotonic() < deadline, threads()
    time.sleep(0.01)
import torch.distributed.nn  # as optimizers of torch do in passing
dist.destroy_process_group()
assert not any("gloo" in name for name in threads()), threads()
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs Linux's list of threads")
def test_the_process_group_ends_when_it_is_destroyed(tmp_path):
    """Else its threads live on until the process exits, and now and then abort it."""
    done = subprocess.run(
        [sys.executable, "-c", ENDING, str(tmp_path / "meeting")],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
