"""Experiments on size: of data, images, theta."""
