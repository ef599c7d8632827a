"""Optimizers to compare SNOpt with, on the same layer and Kronecker code.

A difference in a result is then a difference of method, not of implementation.
"""

from snopt.baselines.adagrad_norm import AdaGradNorm
from snopt.baselines.kbfgs import KBFGS, KBFGSL
from snopt.baselines.kfac import EKFAC, KFAC, EKFACPreconditioner, KFACPreconditioner

__all__ = [
    "EKFAC",
    "KBFGS",
    "KBFGSL",
    "KFAC",
    "AdaGradNorm",
    "EKFACPreconditioner",
    "KFACPreconditioner",
]
