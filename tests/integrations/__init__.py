"""Trainers that people use, unpatched."""
