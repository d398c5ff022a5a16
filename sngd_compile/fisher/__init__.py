"""What runs inside a reconstructed network: local Fisher layers, observation, refresh."""
