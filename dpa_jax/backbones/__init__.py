"""Frozen networks whose features images are compared by: the seam and what fills it."""
