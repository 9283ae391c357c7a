"""The certificates against references in 80-bit floats."""
