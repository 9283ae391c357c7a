"""Experiments on size: of data, images, theta; thousands of data weights, beside the methods made for them."""
