"""theta_k -> theta_{k+1}: one step, made of parts."""
