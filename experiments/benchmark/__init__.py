"""Measuring: time of solves and of optimizer steps, peak memory; each number with its origin."""
