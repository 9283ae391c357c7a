"""What is known of images beforehand: one regulariser a file."""
