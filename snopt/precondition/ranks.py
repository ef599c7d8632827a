"""Data-parallel training: averages over the ranks of a ``torch.distributed`` process group.

Every rank has the whole model and its own rows of the batch, and its loss is the mean over them.
What one process would have made of all rows together follows from weighted means over the ranks,
the weight being a rank's rows:

- the gradient of the mean loss is the mean of the gradients (:func:`average_gradients`, or
  ``DistributedDataParallel``, which takes all ranks for equal);
- the factors A, B and the time are means of the ranks' own, since a rank makes them from the
  gradients of single samples, which do not depend on the number of rows beside them;
- ``batch`` is the sum of the rows.

N ranks therefore do what one does with N microbatches (gradient accumulation), and for every layer
that sees the rows of the batch, what one does with them all at once. A layer that is fed with the
time alone sees one row on each rank, and counts as many rows as there are ranks.

The decompositions of a refresh are shared out by cost, d³ each, and broadcast.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import reduce
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from snopt.curvature.factors import Factors, ThinFactors, most_columns
from snopt.linalg import Basis, at_least_float32, eigenbases, inverses

if dist.is_available():
    # Its functions' default argument is the process group that there is at its import. Torch's
    # optimizers import it in passing, after init_process_group: the group would then outlive
    # destroy_process_group, and one in some forty processes abort in gloo's thread at its exit.
    import torch.distributed.nn.functional

Compute = Callable[[Sequence[Tensor]], Sequence[Tensor | None]]


class _Facts(NamedTuple):
    """What a rank tells of its factors of one layer; ``columns``: those that B is kept as."""

    rows: int
    time: float
    A: torch.Size
    B: torch.Size
    dtype: torch.dtype
    columns: int | None


def _facts(f: Factors) -> _Facts:
    if isinstance(f, ThinFactors):
        groups, out, columns = f.columns.shape
        B = torch.Size((groups, out, out))
        return _Facts(f.batch, f.weight, f.A.shape, B, f.A.dtype, columns)
    return _Facts(f.batch, f.weight, f.A.shape, f.B.shape, f.A.dtype, None)


class Ranks:
    """The processes that train one model together.

    All methods are collective: every rank has to call them, in the same order. With NCCL call
    ``torch.cuda.set_device`` first. A ``group`` of None means all ranks.

    Raises:
        RuntimeError: if ``torch.distributed`` is not initialised, or the group lacks this process.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        """Look up this process in the group; nothing is sent."""
        if not (dist.is_available() and dist.is_initialized()):
            raise RuntimeError(
                "there is no process group: call torch.distributed.init_process_group() first and"
                " start the ranks with torchrun"
            )
        self.group = group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        if self.rank < 0:
            raise RuntimeError("this process is not a member of the process group")

    def share(self, rows: int | None) -> int | None:
        """Return how many of a number of rows are this rank's, rounded up; None stays None."""
        return None if rows is None else -(-rows // self.size)

    def mean(self, tensors: Sequence[Tensor], weight: float = 1.0) -> list[Tensor]:
        """Return the mean of each tensor over the ranks, each with its ``weight``, not all zero.

        The tensors are of the same shapes on all ranks.
        """
        parts = [at_least_float32(t) * weight for t in tensors]
        *sums, total = self._summed([*parts, parts[0].new_tensor(weight)])
        return [(one / total).to(t) for one, t in zip(sums, tensors, strict=True)]

    def factors(
        self, gathered: Mapping[str, Factors], weights: Mapping[str, Tensor]
    ) -> dict[str, Factors]:
        """Return the factors of all rows of all ranks, for the layers that got data on any.

        Args:
            gathered: this rank's factors, for the layers that got data here.
            weights: the weights of all layers by name, the same on every rank.

        Raises:
            ValueError: if the ranks' factors of a layer differ in shape.
        """
        own = {name: _facts(f) for name, f in gathered.items()}
        told: list[dict[str, _Facts]] = [{}] * self.size
        dist.all_gather_object(told, own, group=self.group)
        # In the order of the layers, which is the same on all ranks.
        by_name = {name: [facts[name] for facts in told if name in facts] for name in weights}
        found = {name: facts for name, facts in by_name.items() if facts}
        parts: list[Tensor] = []
        thin: dict[str, bool] = {}
        for name, facts in found.items():
            if any((one.A, one.B) != (facts[0].A, facts[0].B) for one in facts):
                raise ValueError(f"the ranks disagree on the shape of the factors of layer {name}")
            groups, out, _ = facts[0].B
            columns = sum(one.columns or 0 for one in facts)
            few = columns <= most_columns(out)
            thin[name] = few and all(one.columns is not None for one in facts)
            mine = gathered.get(name)
            A = weights[name].new_zeros(facts[0].A, dtype=facts[0].dtype)
            B = A.new_zeros((groups, out, columns) if thin[name] else facts[0].B)
            if mine is not None:
                share = mine.batch / sum(one.rows for one in facts)
                A = mine.A * share
                if thin[name] and isinstance(mine, ThinFactors):
                    # Side by side: the sum over the ranks is their concatenation.
                    before = sum(f[name].columns or 0 for f in told[: self.rank] if name in f)
                    B[..., before : before + mine.columns.shape[-1]] = mine.columns * share**0.5
                else:
                    B = mine.B * share
            parts += [A, B]
        if not parts:
            return {}
        sums = [one.to(part) for one, part in zip(self._summed(parts), parts, strict=True)]
        combined: dict[str, Factors] = {}
        for i, (name, facts) in enumerate(found.items()):
            rows = sum(one.rows for one in facts)
            time = sum(one.rows * one.time for one in facts) / rows
            kind = ThinFactors if thin[name] else Factors
            combined[name] = kind(sums[2 * i], sums[2 * i + 1], time, rows)
        return combined

    def rows(self, own: Mapping[str, int], names: Sequence[str]) -> dict[str, int]:
        """Return the rows of all ranks by layer, of ``names``, the same on every rank."""
        counts = torch.tensor([own.get(name, 0) for name in names])
        if dist.get_backend(self.group) == "nccl":
            counts = counts.cuda()
        dist.all_reduce(counts, group=self.group)
        return {n: rows for n, rows in zip(names, counts.tolist(), strict=True) if rows}

    def union(self, own: Sequence[str]) -> set[str]:
        """Return the names that any rank gives."""
        told: list[Sequence[str]] = [()] * self.size
        dist.all_gather_object(told, list(own), group=self.group)
        return {name for names in told for name in names}

    def eigenbases(self, matrices: Sequence[Tensor]) -> list[Basis | None]:
        """Return :func:`snopt.linalg.eigenbases` of all ranks' matrices, each made by one rank."""

        def packed(own: Sequence[Tensor]) -> list[Tensor | None]:
            bases = eigenbases(own)  # the eigenvalues become the first column
            return [None if b is None else torch.cat([b[0][..., None], b[1]], -1) for b in bases]

        found = self._shared(matrices, packed, extra=1)
        return [None if M is None else (M[..., 0], M[..., 1:].contiguous()) for M in found]

    def inverses(self, matrices: Sequence[Tensor]) -> list[Tensor | None]:
        """Return :func:`snopt.linalg.inverses` of all ranks' matrices, each made by one rank."""
        return self._shared(matrices, inverses, extra=0)

    def _shared(
        self, matrices: Sequence[Tensor], compute: Compute, extra: int
    ) -> list[Tensor | None]:
        """Return ``compute`` of the matrices, each (groups, d, d + extra) or None."""
        owners = assign([M.shape[0] * M.shape[-1] ** 3 for M in matrices], self.size)
        mine = [i for i, owner in enumerate(owners) if owner == self.rank]
        done = dict(zip(mine, compute([matrices[i] for i in mine]), strict=True))
        found: list[Tensor | None] = [None] * len(matrices)
        for owner in sorted(set(owners)):
            theirs = [i for i, o in enumerate(owners) if o == owner]
            shapes = [(*matrices[i].shape[:-1], matrices[i].shape[-1] + extra) for i in theirs]
            dtype = reduce(torch.promote_types, (matrices[i].dtype for i in theirs))
            like = matrices[theirs[0]].new_empty(0, dtype=dtype)
            parts = [_with_flag(done.get(i), s, like) for i, s in zip(theirs, shapes, strict=True)]
            flat = torch.cat(parts)
            source = owner if self.group is None else dist.get_global_rank(self.group, owner)
            dist.broadcast(flat, source, group=self.group)
            pieces = torch.split(flat, [part.numel() for part in parts])
            for i, shape, piece in zip(theirs, shapes, pieces, strict=True):
                if bool(piece[0]):
                    found[i] = piece[1:].view(shape).to(matrices[i])
        return found

    def _summed(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """Return the sum of each tensor over the ranks, at least in float32."""
        dtype = reduce(torch.promote_types, (part.dtype for part in parts), torch.float32)
        flat = torch.cat([part.reshape(-1).to(parts[0].device, dtype) for part in parts])
        dist.all_reduce(flat, group=self.group)
        pieces = torch.split(flat, [part.numel() for part in parts])
        return [piece.view_as(part) for piece, part in zip(pieces, parts, strict=True)]


@torch.no_grad()
def average_gradients(
    params: Iterable[Tensor], group: dist.ProcessGroup | None = None, *, weight: float = 1.0
) -> None:
    """Replace ``.grad`` by its weighted mean over the ranks, in place; one sum of one flat tensor.

    Call it between ``backward()`` and ``optimizer.step()``, unless the model is wrapped in
    ``DistributedDataParallel``. A parameter that has a gradient on some rank has one on all
    afterwards.

    Args:
        params: the same parameters on all ranks, such as ``model.parameters()``.
        group: process group; None means all ranks.
        weight: rows of this rank's batch; 1 where all ranks have as many.
    """
    ranks = Ranks(group)
    trained = [p for p in params if p.requires_grad]
    if not trained:
        return
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]
    # Who has a gradient rides along: an optimizer tells a zero gradient from none.
    present = torch.tensor([float(p.grad is not None) for p in trained], device=grads[0].device)
    *means, shared = ranks.mean([*grads, present], weight)
    for p, mean, given in zip(trained, means, (shared > 0).tolist(), strict=True):
        if given:
            p.grad = mean if p.grad is None else p.grad.copy_(mean)


def assign(costs: Sequence[float], size: int) -> list[int]:
    """Return one of ``size`` ranks for each piece of work: the longest first, to the least busy."""
    loads, owners = [0.0] * size, [0] * len(costs)
    for i in sorted(range(len(costs)), key=lambda i: -costs[i]):
        owners[i] = loads.index(min(loads))
        loads[owners[i]] += costs[i]
    return owners


def _with_flag(found: Tensor | None, shape: Sequence[int], like: Tensor) -> Tensor:
    """Return a flat tensor: 1 and the entries, or 0 and zeros."""
    if found is None:
        return like.new_zeros(1 + torch.Size(shape).numel())
    return torch.cat([like.new_ones(1), found.reshape(-1).to(like)])
