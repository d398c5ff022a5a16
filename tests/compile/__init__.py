"""`torch.compile(sngd.reconstruct(model), fullgraph=True)`."""
