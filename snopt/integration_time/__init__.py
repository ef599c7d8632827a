"""The integration time as a parameter."""
