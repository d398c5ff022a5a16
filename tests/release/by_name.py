"""The Dynamo backend, found by its name: nothing here imports the library.

Part of `make release-check`.
"""

import sys

import torch
from torch import nn


def main() -> None:
    """Compile by name, and see that the gradient has become the natural one."""
    assert "sngd" in torch.compiler.list_backends(), torch.compiler.list_backends()
    inputs = torch.randn(50, 5)
    plain = nn.Linear(5, 3, bias=False)
    options = {"inner_backend": "eager", "early_observations": (0,), "early_refreshes": (1,)}
    compiled = torch.compile(plain, backend="sngd", options=options)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.0)
    for _ in range(2):
        optimizer.zero_grad()
        compiled(inputs).square().mean().backward()
        optimizer.step()
    assert "sngd_compile" in sys.modules
    euclidean = torch.autograd.grad((inputs @ plain.weight.T).square().mean(), plain.weight)[0]
    found = plain.weight.grad
    assert found is not None
    assert not torch.allclose(found, euclidean, rtol=1e-3), "the gradient is the plain one"


if __name__ == "__main__":
    main()
