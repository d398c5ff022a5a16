"""The smallest whole example: reconstruct, train with plain SGD, fold, use."""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

import sngd_compile as sngd

torch.manual_seed(0)
digits = load_digits()
inputs = torch.tensor(digits.data / 16, dtype=torch.float32)
labels = torch.tensor(digits.target)
model = nn.Sequential(nn.Linear(64, 80), nn.ReLU(), nn.Linear(80, 10))

net = sngd.reconstruct(model)
optimizer = torch.optim.SGD(net.parameters(), lr=0.03, momentum=0.9, nesterov=True)
for _ in range(200):
    batch = torch.randint(1500, (128,))
    optimizer.zero_grad()
    F.cross_entropy(net(inputs[batch]), labels[batch]).backward()
    optimizer.step()

plain = sngd.fold(net)  # an ordinary nn.Sequential again
correct = plain(inputs[1500:]).argmax(dim=1) == labels[1500:]
print(f"accuracy on {len(correct)} digits not trained on: {correct.float().mean():.1%}")
