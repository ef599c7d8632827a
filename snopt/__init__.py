"""SNOpt: train Neural ODEs with second-order information, on stock torchdiffeq.

Liu, Chen, Theodorou, "Second-Order Neural ODE Optimizer", NeurIPS 2021.
"""

from snopt.adjoint import odeint_adjoint
from snopt.block import ODEBlock
from snopt.checkpoint import odeint_checkpoint
from snopt.direct import odeint
from snopt.distributed import average_gradients
from snopt.errors import SolverError
from snopt.horizon import IntegrationTime
from snopt.kronecker import KroneckerPair
from snopt.low_rank import hessian_factors, low_rank_adjoint
from snopt.optimizer import SNOpt
from snopt.preconditioner import Preconditioner
from snopt.quadrature import evaluations, gauss_legendre, steps, uniform
from snopt.schedules import DenseThenSparse, Exponential, WhenStale
from snopt.second_order import second_order_adjoint
from snopt.solve import NFE
from snopt.trust_region import TrustRegion

__all__ = [
    "NFE",
    "DenseThenSparse",
    "Exponential",
    "IntegrationTime",
    "KroneckerPair",
    "ODEBlock",
    "Preconditioner",
    "SNOpt",
    "SolverError",
    "TrustRegion",
    "WhenStale",
    "average_gradients",
    "evaluations",
    "gauss_legendre",
    "hessian_factors",
    "low_rank_adjoint",
    "odeint",
    "odeint_adjoint",
    "odeint_checkpoint",
    "second_order_adjoint",
    "steps",
    "uniform",
]
