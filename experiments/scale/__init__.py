"""What happens where there is much: thousands of data weights, beside the methods that were made for them."""
