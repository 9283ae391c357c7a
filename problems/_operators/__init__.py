"""What was measured of an image: one linear map a file."""
