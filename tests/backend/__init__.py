"""The laws of `torch.compile(model, backend="sngd")`."""
