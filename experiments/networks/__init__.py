"""Self-tuning networks, STN and Delta-STN, and best responses of a lower level."""
