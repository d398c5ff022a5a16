"""`torch.compile(model, backend="sngd")`: the parameters stay `w`, their gradients come natural."""
