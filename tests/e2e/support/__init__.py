"""Helpers of the tests that run the product as a whole."""
