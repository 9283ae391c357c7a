"""Linear algebra on pytrees; knows nothing of problems."""
