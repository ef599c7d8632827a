"""The quadratic model behind an integration time that is trained: pure functions.

Liu, Chen, Theodorou (NeurIPS 2021), on optimising the integration time. A block integrates from t0
to t1. Write T = |t1 - t0| for its horizon, z(T) for the state at its end, F for the velocity there
in the direction of integration (dz/dt where t1 > t0, -dz/dt where t1 < t0), Φ for the loss as a
function of z(T), and let a horizon cost make time expensive:

    J(T, θ) = c/2 T² + Φ(z(T; θ))                                                            (H1)

**First order.** ∂z(T)/∂T = F, so with the scale s

    s = Fᵀ Φ_z,        Q_T = ∂J/∂T = c T + s                                                 (H2)

exactly, in either direction of time, for any solver that is accurate at its end.

**Second order.** Keeping the first derivatives of z(T; θ) alone (Gauss-Newton, as in Theorem 1;
the second ones, z_TT = F_t + F_z F and z_Tθ = F_θ + F_z z_θ, are dropped) and replacing Φ_zz by the
outer product Φ_z Φ_zᵀ (the *empirical* curvature of Proposition 2, R = 1),

    Q_TT = c + Fᵀ Φ_zz F       = c + s²                                                      (H3)
    Q_Tθ = Fᵀ Φ_zz ∂z(T)/∂θ    = s (∂z(T)/∂θ)ᵀ Φ_z = s Q_u                                   (H4)

with Q_u = ∂Φ/∂θ for the parameters θ of the field: what backpropagation leaves in ``.grad``. Both
are exact where Φ is the negative logarithm of a linear function of z(T) and z is linear in (T, θ).

**Scale.** The loss is the mean over a batch, so autograd's gradient at the block's output, summed
against F over the whole batch, is the batch mean already: s = Σ_b F_bᵀ ∂Φ/∂z_b = E[F_bᵀ ∂φ_b/∂z_b]
for Φ = E[φ_b]; nothing is multiplied by the batch size. (H3) squares this mean: the batch is one
state with one terminal loss. The mean of the squares E[(F_bᵀ ∂φ_b/∂z_b)²] would be larger by their
variance between samples, and the steps shorter.

**Steps.** The quadratic model of J around the present (T, θ), minimised over δT *given* the step δθ
that an optimizer has just taken, is the **feedback** step; the **baseline** is gradient descent:

    feedback:  δT = -η (Q_T + Q_Tθ·δθ) / Q_TT        baseline:  δT = -η Q_T                  (H5)

Q_Tθ·δθ = s (Q_u·δθ), so it takes the gradient *before* any preconditioning, momentum or weight
decay, and the difference of the parameters across the optimizer's step. Q_u·δθ is the change of the
loss that this step brings to first order, and (H5) counts it as progress that T need not make.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

MODES = ("fixed", "baseline", "feedback")


@dataclass(frozen=True)
class HorizonModel:
    """Derivatives of J along T, of one step or averaged over updates.

    Attributes:
        s: Fᵀ Φ_z, the loss per unit of time at the end of the block.
        Q_T: (H2).
        Q_TT: (H3), at least c.
    """

    s: float
    Q_T: float
    Q_TT: float

    @classmethod
    def at(cls, T: float, s: float, cost: float) -> HorizonModel:
        """Return the model at horizon ``T`` under the horizon cost ``cost``/2 T²."""
        return cls(s, cost * T + s, cost + s * s)

    def averaged(self, past: HorizonModel | None, decay: float) -> HorizonModel:
        """Return the exponential average, ``decay`` times the past and the rest this; or this."""
        if past is None:
            return self
        mine, theirs = (self.s, self.Q_T, self.Q_TT), (past.s, past.Q_T, past.Q_TT)
        return HorizonModel(
            *(decay * old + (1.0 - decay) * new for old, new in zip(theirs, mine, strict=True))
        )

    def feedback(self, predicted: float) -> float:
        """Return Q_Tθ·δθ by (H4), where ``predicted`` is Q_u·δθ."""
        return self.s * predicted

    def step(self, mode: str, lr: float, predicted: float) -> float:
        """Return δT by (H5).

        Args:
            mode: ``"baseline"`` or ``"feedback"``.
            lr: η.
            predicted: Q_u·δθ; the baseline does not look at it.
        """
        if mode == "baseline":
            return -lr * self.Q_T
        return -lr * (self.Q_T + self.feedback(predicted)) / self.Q_TT


def check_settings(
    mode: str, lr: float, cost: float, every: int, minimum: float, decay: float
) -> None:
    """Check the settings of :class:`snopt.IntegrationTime`.

    Raises:
        ValueError: naming the setting, its value and what would be valid.
    """
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
    if not 0 < lr < math.inf:
        raise ValueError(f"lr (η) must be above 0, got {lr!r}")
    if not 0 <= cost < math.inf or (mode == "feedback" and cost == 0):
        least = "above 0 for feedback, which divides by it" if cost == 0 else "at least 0"
        raise ValueError(f"cost (c of the horizon cost) must be {least}, got {cost!r}")
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise ValueError(f"every must be a whole number of at least 1, got {every!r}")
    if not 0 < minimum < math.inf:
        raise ValueError(f"minimum (the smallest horizon) must be above 0, got {minimum!r}")
    if not 0 <= decay < 1:
        raise ValueError(f"decay must lie in [0, 1), got {decay!r}")
