"""Muon: kernels as matrices, everything else by AdamW; and why torch's own does not do."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from experiments.optimizers.muon import Muon, is_matrix


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict(
        {
            "conv": nn.Conv2d(3, 8, 3),
            "linear": nn.Linear(6, 20),
            "gate": nn.Linear(1, 5, bias=False),
            "embed": nn.Embedding(7, 4),
            "readout": nn.Linear(20, 3),
        }
    )


def with_gradients(model: nn.Module) -> dict[str, Tensor]:
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def step(model: nn.Module, **options: object) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return gradients and changes of one step."""
    grads = with_gradients(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with pytest.warns(UserWarning, match="Muon") as told:
        optimizer = Muon(model, lr=0.1, adamw_lr=0.01, exclude=["readout"], **options)
    (message,) = [str(w.message) for w in told]
    assert message.startswith("Muon does not treat conv.bias, linear.bias, gate.weight, embed.w")
    assert message.endswith("AdamW at 0.01 for these")
    optimizer.step()
    return grads, {name: p.detach() - before[name] for name, p in model.named_parameters()}


@pytest.mark.parametrize("layer", [nn.Conv2d(3, 8, 3).weight, nn.Linear(3, 3).bias])
def test_torchs_own_refuses_kernels_and_biases(layer):
    with pytest.raises(ValueError, match="2D"):
        torch.optim.Muon([layer])


@pytest.mark.parametrize("name", ["conv.weight", "linear.weight"])
def test_a_kernel_is_orthogonalised_as_out_by_everything_else(name):
    grads, changes = step(net())
    G = grads[name].flatten(1)
    rows, columns = G.shape
    update = -changes[name].flatten(1) / (0.1 * max(1, rows / columns) ** 0.5)
    U, _, Vh = torch.linalg.svd(G, full_matrices=False)
    core = U.T @ update @ Vh.T
    # The quintic iteration leaves singular values around 1; its directions are the gradient's.
    assert (core.diag() > 0.6).all()
    assert (core.diag() < 1.3).all()
    assert (core - core.diag().diag()).abs().max() < 0.05
    assert torch.allclose(U @ core @ Vh, update, atol=0.05)


def test_vectors_embeddings_and_the_read_out_get_adamw():
    model, twin = net(), net()
    grads, changes = step(model, adamw_betas=(0.9, 0.95), adamw_eps=1e-10)
    names = {"conv.bias", "linear.bias", "gate.weight", "embed.weight"}
    names |= {"readout.weight", "readout.bias"}
    before = {name: p.detach().clone() for name, p in twin.named_parameters()}
    parameters = dict(twin.named_parameters())
    for name in names:
        parameters[name].grad = grads[name]
    chosen = [parameters[name] for name in names]
    torch.optim.AdamW(chosen, lr=0.01, betas=(0.9, 0.95), eps=1e-10, weight_decay=0.0).step()
    for name in names:
        assert torch.allclose(changes[name], parameters[name].detach() - before[name], atol=1e-7)


@pytest.mark.parametrize(
    ("shape", "matrix"),
    [((3, 4), True), ((8, 3, 3, 3), True), ((4,), False), ((), False), ((1, 9), False)],
)
def test_a_side_of_length_one_makes_a_vector(shape, matrix):
    assert is_matrix(torch.zeros(shape)) is matrix


def test_groups_keep_their_settings():
    model = net()
    groups = [
        {"params": model["conv"].parameters(), "lr": 0.0},
        {"params": model["linear"].parameters()},
    ]
    with_gradients(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with pytest.warns(UserWarning, match=r"conv.bias, linear.bias"):
        Muon(model, params=groups).step()
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert changed == {"linear.weight", "linear.bias", "conv.bias"}


def test_a_model_without_a_matrix_is_refused():
    with pytest.raises(ValueError, match="no weight matrix or kernel for Muon"):
        Muon(nn.LayerNorm(4))
    with pytest.raises(TypeError, match="must be the model"):
        Muon([torch.zeros(3)])  # type: ignore[arg-type]
