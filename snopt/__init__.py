"""SNOpt: train Neural ODEs with second-order information, on stock torchdiffeq.

Liu, Chen, Theodorou, "Second-Order Neural ODE Optimizer", NeurIPS 2021.
"""

from snopt.adjoint import odeint_adjoint
from snopt.block import ODEBlock
from snopt.checkpoint import odeint_checkpoint
from snopt.direct import odeint
from snopt.errors import SolverError
from snopt.kronecker import KroneckerPair
from snopt.optimizer import SNOpt
from snopt.preconditioner import Preconditioner
from snopt.quadrature import gauss_legendre, steps, uniform
from snopt.solve import NFE

__all__ = [
    "NFE",
    "KroneckerPair",
    "ODEBlock",
    "Preconditioner",
    "SNOpt",
    "SolverError",
    "gauss_legendre",
    "odeint",
    "odeint_adjoint",
    "odeint_checkpoint",
    "steps",
    "uniform",
]
