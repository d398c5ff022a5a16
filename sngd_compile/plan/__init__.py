"""What happens to every parameter: a site, which is reconstructed, or a skip with its reason."""
