"""What is known of f and its gradient from a lower level that was solved with an error."""
