"""Closures and a slow, independent K-BFGS for the tests of ours."""

from __future__ import annotations

import torch
from optimizer_cases import batch
from torch import nn

from snopt.baselines import KBFGS, KBFGSL

KINDS = {"dense": KBFGS, "limited": KBFGSL}


def closure_of(model, optimizer, data, log=None):
    """Return a closure for a batch; ``log`` gets one entry for each evaluation."""

    def closure():
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(data[0]), data[1])
        loss.backward()
        if log is not None:
            log.append(loss.item())
        return loss

    return closure


def train(model, optimizer, steps, seed=1, log=None):
    """Return the losses before each step, a new batch in each."""
    return [
        optimizer.step(closure_of(model, optimizer, batch(seed + k), log)).item()
        for k in range(steps)
    ]


class SlowKBFGS:
    """The algorithm for a chain of tanh layers, sample by sample, as the paper writes it down."""

    def __init__(self, model, loss, *, lr, damping, decay):
        self.model, self.loss = model, loss
        self.lr, self.damping, self.decay = lr, damping, decay
        self.layers = [{} for _ in model]

    def evaluate(self, data):
        """Return for each layer the samples' inputs with a 1, pre-activations and g."""
        a, found, chain = data[0], [], []
        for i, layer in enumerate(self.model):
            h = a @ layer.weight.T + layer.bias
            h.retain_grad()
            found.append((torch.cat([a.detach(), torch.ones(len(a), 1).to(a)], 1), h))
            chain.append(h)
            a = torch.tanh(h) if i < len(self.model) - 1 else h
        self.model.zero_grad()
        self.loss(a, data[1]).backward()
        return [(a, h.detach(), len(a) * h.grad) for a, h in found]

    def step(self, data):
        beta, root = self.decay, self.damping**0.5
        before = self.evaluate(data)
        for layer, state, (a, h, _) in zip(self.model, self.layers, before, strict=True):
            A = sum(torch.outer(row, row) for row in a) / len(a)
            state["A"] = beta * state["A"] + (1 - beta) * A if state else A
            state["LM"] = state["A"] + root * torch.eye(len(A), dtype=A.dtype)
            state.setdefault("H_a", torch.linalg.inv(state["LM"]))
            state.setdefault("H_g", torch.eye(h.shape[1], dtype=h.dtype))
            G = torch.cat([layer.weight.grad, layer.bias.grad.unsqueeze(1)], 1)
            state["G"] = beta * state.get("G", 0) + (1 - beta) * G
            P = state["H_g"] @ state["G"] @ state["H_a"]
            with torch.no_grad():
                layer.weight -= self.lr * P[:, :-1]
                layer.bias -= self.lr * P[:, -1]
        after = self.evaluate(data)
        for state, (a, h, g), (_, h_new, g_new) in zip(self.layers, before, after, strict=True):
            state["s"] = beta * state.get("s", 0) + (1 - beta) * (h_new.mean(0) - h.mean(0))
            state["y"] = beta * state.get("y", 0) + (1 - beta) * (g_new.mean(0) - g.mean(0))
            s, y = self.damp(state["s"], state["y"], state["H_g"], root)
            state["H_g"] = self.bfgs(state["H_g"], s, y)
            s = state["H_a"] @ a.mean(0)
            state["H_a"] = self.bfgs(state["H_a"], s, state["LM"] @ s)

    @staticmethod
    def damp(s, y, H, mu_2):
        yHy = y @ H @ y
        theta = 1.0 if s @ y >= 0.2 * yHy else 0.8 * yHy / (yHy - s @ y)
        s = theta * s + (1 - theta) * (H @ y)
        theta = 1.0 if s @ y >= mu_2 * (s @ s) else (1 - mu_2) * (s @ s) / (s @ s - s @ y)
        return s, theta * y + (1 - theta) * s

    @staticmethod
    def bfgs(H, s, y):
        V = torch.eye(len(s), dtype=s.dtype) - torch.outer(s, y) / (s @ y)
        return V @ H @ V.T + torch.outer(s, s) / (s @ y)
