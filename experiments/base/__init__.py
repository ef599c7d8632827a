"""What every room needs: files, clock, seeds, device, errors, checks."""
