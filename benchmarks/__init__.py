"""Measured speed and memory, against the best a user would have otherwise; never run as tests."""
