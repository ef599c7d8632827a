"""SNOpt: train Neural ODEs with second-order information, on stock torchdiffeq.

Liu, Chen, Theodorou, "Second-Order Neural ODE Optimizer", NeurIPS 2021.
"""

from snopt.curvature.quadrature import evaluations, gauss_legendre, steps, uniform
from snopt.errors import SolverError
from snopt.integration_time.hooks import IntegrationTime
from snopt.precondition.kronecker import KroneckerPair
from snopt.precondition.ranks import average_gradients
from snopt.precondition.schedules import DenseThenSparse, TrustRegion
from snopt.precondition.snopt import Preconditioner, SNOpt
from snopt.solve.adjoint import odeint_adjoint
from snopt.solve.checkpoint import odeint_checkpoint
from snopt.solve.direct import odeint
from snopt.solve.events import odeint_event
from snopt.solve.ode_block import ODEBlock
from snopt.solve.solver import NFE
from snopt.theory.low_rank import hessian_factors, low_rank_adjoint
from snopt.theory.second_order import second_order_adjoint

__all__ = [
    "NFE",
    "DenseThenSparse",
    "IntegrationTime",
    "KroneckerPair",
    "ODEBlock",
    "Preconditioner",
    "SNOpt",
    "SolverError",
    "TrustRegion",
    "average_gradients",
    "evaluations",
    "gauss_legendre",
    "hessian_factors",
    "low_rank_adjoint",
    "odeint",
    "odeint_adjoint",
    "odeint_checkpoint",
    "odeint_event",
    "second_order_adjoint",
    "steps",
    "uniform",
]
