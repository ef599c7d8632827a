"""Butcher tableaux as data: the Runge-Kutta methods that the engine runs itself.

They are torchdiffeq's, its two habits included, so that step sequences agree:

- every adaptive method hands its last stage on as the next step's first. For dopri5 and bosh3 that
  stage is F at the step's end; for adaptive_heun and fehlberg2 it is F near it;
- ``"rk4"`` is Kutta's 3/8 rule.

Sources: Dormand and Prince (1980); Bogacki and Shampine (1989); Fehlberg (1969); the midpoint
weights of dopri5's dense output: Shampine (1986).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Tableau:
    """An explicit Runge-Kutta method.

    Attributes:
        name: torchdiffeq's name of the method.
        order: order p; the step size follows error^(-1/p).
        c: time of each stage within the step, as a fraction of dt.
        a: stage i is taken at y0 + dt Σ_j a[i][j] k_j; the first row is empty.
        b: the step is y0 + dt Σ_i b_i k_i.
        error: weights of the error estimate; empty for a fixed-step method.
        mid: weights of the solution at the middle of the step, for the quartic interpolant; empty
            for a fixed-step method.
    """

    name: str
    order: int
    c: tuple[float, ...]
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    error: tuple[float, ...] = ()
    mid: tuple[float, ...] = ()

    @property
    def stages(self) -> int:
        """Number of stages, the one handed on included."""
        return len(self.c)

    @property
    def adaptive(self) -> bool:
        """Whether the method controls its step; then its last stage is the next step's first."""
        return bool(self.error)

    @cached_property
    def ends_on_a_stage(self) -> bool:
        """Whether the last stage is taken at the step's own result."""
        return self.b == (*self.a[-1], 0.0)

    def needs_product(self, stage: int) -> bool:
        """Whether a path integral needs the stage, in this step or as the next one's first."""
        handed_on = self.adaptive and stage == self.stages - 1
        return self.b[0 if handed_on else stage] != 0


_DOPRI5_B = (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84)

_BOSH3_B = (2 / 9, 1 / 3, 4 / 9)

TABLEAUX = {
    tableau.name: tableau
    for tableau in (
        Tableau(
            name="dopri5",
            order=5,
            c=(0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0),
            a=(
                (),
                (1 / 5,),
                (3 / 40, 9 / 40),
                (44 / 45, -56 / 15, 32 / 9),
                (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
                (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
                _DOPRI5_B,
            ),
            b=(*_DOPRI5_B, 0.0),
            error=(
                35 / 384 - 1951 / 21600,
                0.0,
                500 / 1113 - 22642 / 50085,
                125 / 192 - 451 / 720,
                -2187 / 6784 + 12231 / 42400,
                11 / 84 - 649 / 6300,
                -1 / 60,
            ),
            mid=(
                6025192743 / 30085553152 / 2,
                0.0,
                51252292925 / 65400821598 / 2,
                -2691868925 / 45128329728 / 2,
                187940372067 / 1594534317056 / 2,
                -1776094331 / 19743644256 / 2,
                11237099 / 235043384 / 2,
            ),
        ),
        Tableau(
            name="bosh3",
            order=3,
            c=(0.0, 1 / 2, 3 / 4, 1.0),
            a=((), (1 / 2,), (0.0, 3 / 4), _BOSH3_B),
            b=(*_BOSH3_B, 0.0),
            error=(2 / 9 - 7 / 24, 1 / 3 - 1 / 4, 4 / 9 - 1 / 3, -1 / 8),
            mid=(0.0, 1 / 2, 0.0, 0.0),
        ),
        Tableau(
            name="fehlberg2",
            order=2,
            c=(0.0, 1 / 2, 1.0),
            a=((), (1 / 2,), (1 / 256, 255 / 256)),
            b=(1 / 512, 255 / 256, 1 / 512),
            error=(-1 / 512, 0.0, 1 / 512),
            mid=(0.0, 1 / 2, 0.0),
        ),
        Tableau(
            name="adaptive_heun",
            order=2,
            c=(0.0, 1.0),
            a=((), (1.0,)),
            b=(1 / 2, 1 / 2),
            error=(1 / 2, -1 / 2),
            mid=(1 / 2, 0.0),
        ),
        Tableau(name="euler", order=1, c=(0.0,), a=((),), b=(1.0,)),
        Tableau(name="midpoint", order=2, c=(0.0, 1 / 2), a=((), (1 / 2,)), b=(0.0, 1.0)),
        Tableau(
            name="rk4",
            order=4,
            c=(0.0, 1 / 3, 2 / 3, 1.0),
            a=((), (1 / 3,), (-1 / 3, 1.0), (1.0, -1.0, 1.0)),
            b=(1 / 8, 3 / 8, 3 / 8, 1 / 8),
        ),
    )
}
