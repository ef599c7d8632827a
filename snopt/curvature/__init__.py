"""What is measured along a pass: layers, uses, Kronecker factors, quadrature of the path."""
