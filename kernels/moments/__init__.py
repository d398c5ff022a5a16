"""Second moments of rows, and their diagonals."""
