"""How optimizers are driven, and thin adapters around those of libraries."""
