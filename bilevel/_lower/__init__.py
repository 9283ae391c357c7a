"""The lower level, solved to a certified error."""
