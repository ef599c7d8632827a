"""Figures of the paper, drawn from run records alone."""
