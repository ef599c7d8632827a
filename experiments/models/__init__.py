"""Models of the experiments: one Neural ODE architecture a file."""
