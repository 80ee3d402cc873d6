"""The method in PyTorch, written from its description: baseline and test oracle."""
