"""Measurements of speed, and PyTorch versions of the method to compare with."""
