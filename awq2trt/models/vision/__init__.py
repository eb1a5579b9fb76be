"""How models see images: the description of a vision tower and its projector, and both in PyTorch."""
