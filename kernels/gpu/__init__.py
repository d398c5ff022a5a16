"""The Triton kernels, one operation a file: config table, kernel, launcher.

Only this package imports Triton, and nothing imports this package until a tensor takes that path.
"""
