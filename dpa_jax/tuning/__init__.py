"""Choosing hyper-parameters with a few known anomalies (method, section 6)."""
