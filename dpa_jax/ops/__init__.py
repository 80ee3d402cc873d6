"""Convolutions and activations, arranged as each kind of device is fast with them."""
