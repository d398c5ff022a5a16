"""One step of an optimizer: its gradients are looked at and bounded, and who steps is known."""
