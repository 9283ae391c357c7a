"""What the experiments share: logs, tables, figures, and the run of an optimiser from elsewhere."""
