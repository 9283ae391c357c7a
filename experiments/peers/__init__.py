"""Comparisons with what people use today: SciPy, scikit-image, scikit-learn, Optuna, jaxopt."""
