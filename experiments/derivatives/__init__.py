"""First and second derivatives of a loss behind an ODE, by every way there is, and their cost."""
