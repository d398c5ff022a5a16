"""Roots `R` of the inverse of a damped factor, `R^T R = G^-1`: one kind of root a file."""
