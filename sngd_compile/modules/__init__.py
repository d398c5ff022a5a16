"""Reconstructed modules: their class, their attributes and the weights that they fold."""
