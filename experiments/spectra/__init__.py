"""What curvature looks like: eigenvalues, densities, and factors along the path."""
