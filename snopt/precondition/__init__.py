"""From factors to a step: preconditioners and the optimizers that use them."""
