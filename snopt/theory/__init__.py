"""The paper's derivations in exact form: Theorem 1, Proposition 2, factors along the path."""
