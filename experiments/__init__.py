"""Run as modules from the checkout, `python -m experiments.paper.tv`; README.md says what is where. Not installed."""
