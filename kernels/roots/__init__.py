"""Roots of the inverses of factors."""
