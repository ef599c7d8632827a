"""Room that layers share: two matrices at a time, as large as the largest."""

import torch

from snopt.precondition.kronecker import Workspace


def test_two_matrices_of_any_size_share_the_largest_ones_memory():
    workspace = Workspace()
    large = torch.empty(1, 30, 40)
    one, other = workspace.like(large)
    assert one.shape == other.shape == large.shape
    one.fill_(1.0)
    other.fill_(2.0)
    assert bool((one == 1).all())
    held = one.untyped_storage().data_ptr()
    small = workspace.like(torch.empty(2, 3, 4))
    assert [m.shape for m in small] == [(2, 3, 4)] * 2
    assert small[0].untyped_storage().data_ptr() == held
    assert workspace.like(large)[0].untyped_storage().data_ptr() == held


def test_dtypes_are_kept_apart():
    workspace = Workspace()
    single, _ = workspace.like(torch.empty(2, 2))
    double, _ = workspace.like(torch.empty(2, 2, dtype=torch.float64))
    single.fill_(1.0)
    double.fill_(2.0)
    assert bool((single == 1).all())
    assert double.dtype == torch.float64
