"""The ODE as a layer: the same numbers as the function's, and arguments that are refused."""

from __future__ import annotations

import pytest
import torch
from snopt_cases import TanhField, assert_close

from snopt import ODEBlock, odeint_adjoint


def test_block_and_function_forms_agree():
    torch.manual_seed(0)
    field = TanhField()
    block = ODEBlock(field, (0.0, 0.5, 1.0), rtol=1e-5, atol=1e-6, return_all=True)
    z = torch.randn(3, 3)
    expected = odeint_adjoint(field, z, torch.tensor([0.0, 0.5, 1.0]), rtol=1e-5, atol=1e-6)
    assert torch.equal(block(z), expected)
    half_way = ODEBlock(field, rtol=1e-5, atol=1e-6)(z, [0.0, 0.5])
    assert_close(half_way, expected[1], rtol=1e-4)
    assert block.nfe.forward > 0
    block.nfe.reset()
    assert (block.nfe.forward, block.nfe.backward, block.nfe.curvature) == (0, 0, 0)
    assert "gradient=adjoint" in repr(block)


@pytest.mark.parametrize(
    ("args", "kwargs", "error", "message"),
    [
        ((lambda t, z: z,), {}, TypeError, "nn.Module"),
        ((TanhField(), (0.0,)), {}, ValueError, "at least two times"),
        ((TanhField(), (0.0, 1.0, 0.5)), {}, ValueError, "strictly increasing"),
        ((TanhField(),), {"gradient": "magic"}, ValueError, "adjoint, direct"),
    ],
)
def test_bad_blocks(args, kwargs, error, message):
    with pytest.raises(error, match=message):
        ODEBlock(*args, **kwargs)
