"""From theta_k to theta_{k+1}."""
