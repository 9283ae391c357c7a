"""Linear models: what many penalties are worth on rows that nobody has seen."""
