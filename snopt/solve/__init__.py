"""ODEs, solved forward and back: the adjoint, direct and checkpointed gradients on two engines."""
