"""Training that goes on after a process is killed, on as many processes as there are then.

    export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
    torchrun --standalone --nproc-per-node 4 --max-restarts 3 examples/elastic.py run.pt

Kill a process: all start again from the last checkpoint. Start it anew with another number of
processes: it goes on as that many would have gone on without a break, bit for bit. Without the
first line processes that start again may look for those that are gone, at their old addresses.
"""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, Optimizer

import sngd_compile as sngd
from data import Dataset, Name, load

STEPS, SAVE_EVERY, BATCH = 60, 5, 96


def start() -> tuple[nn.Module, Optimizer]:
    """Returns the network and the optimizer, alike in every process."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 40), nn.ReLU(), nn.Linear(40, 10))
    net = sngd.reconstruct(model, sngd.Config(refresh_every=10, observe_every=4))
    return net, SGD(net.parameters(), lr=0.03, momentum=0.9)


def save(path: Path, net: nn.Module, optimizer: Optimizer, step: int) -> None:
    """Replaces the checkpoint in one go: who is killed before that leaves the last one."""
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        states = {"net": net.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
        torch.save(states, file)
        os.fsync(file.fileno())
    part.replace(path)


def resume(path: Path, net: nn.Module, optimizer: Optimizer) -> int:
    """Loads the last checkpoint, if there is one; returns how many steps are done."""
    if not path.exists():
        return 0
    states = torch.load(path, weights_only=True)
    net.load_state_dict(states["net"])
    optimizer.load_state_dict(states["optimizer"])
    done: int = states["step"]
    return done


def train(net: nn.Module, optimizer: Optimizer, data: Dataset, steps: range, path: Path) -> None:
    """Takes some steps in all processes; the first one saves."""
    rank, size = dist.get_rank(), dist.get_world_size()
    # Without that it packs its buckets anew after its first step. Then more than two processes that
    # began again add up in another order than ones that went on, for a plain network too.
    trained = DistributedDataParallel(net, find_unused_parameters=True)
    for step in steps:
        # The same rows in each step, however many processes share them.
        generator = torch.Generator().manual_seed(step)
        rows = torch.randint(len(data.train_labels), (BATCH,), generator=generator)[rank::size]
        outputs = trained(data.train_inputs[rows])
        loss = F.cross_entropy(outputs, data.train_labels[rows], reduction="sum") * size / BATCH
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if rank == 0 and (step + 1) % SAVE_EVERY == 0:
            save(path, net, optimizer, step + 1)


def main(path: Path) -> None:
    """Trains as far as it is to go; prints the accuracy."""
    dist.init_process_group("gloo")
    data = load(Name.DIGITS)
    net, optimizer = start()
    train(net, optimizer, data, range(resume(path, net, optimizer), STEPS), path)
    if dist.get_rank() == 0:
        correct = sngd.fold(net)(data.test_inputs).argmax(dim=1) == data.test_labels
        print(f"accuracy on {len(correct)} digits not trained on: {correct.float().mean():.1%}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
