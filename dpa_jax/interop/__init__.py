"""The published PyTorch code's files: configurations and checkpoints."""
