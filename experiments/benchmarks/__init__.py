"""Speed and cost: of kernels, lower-level solvers, methods, and `bilevel.solve` without a tolerance."""
