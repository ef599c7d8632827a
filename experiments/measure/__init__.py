"""Time, memory, spectra and derivatives, measured."""
