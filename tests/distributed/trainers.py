"""Trainers that people use: the first process saves, and any number of processes goes on.

Print by name how far the folded weights are from those of one process on the joint batches.
"""

import contextlib
import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

import sngd_compile as sngd
from backend.compiled import mlp

PROCESSES, STEPS, SAVED = 4, 14, 9  # the file lies between an observed step and a refresh
SETTING = sngd.Config(refresh_every=6, observe_every=2, max_rows=None, damping_abs=0.1)


class Case(NamedTuple):
    """A training: its local Fisher, decay of weights alone, and backward passes in a step."""

    fisher: str
    decay: float
    parts: int


class Member(NamedTuple):
    """One of the processes that train together, and where their file is."""

    rank: int
    size: int
    folder: str


Run = Callable[[Case, Member, bool], nn.Module]


@contextlib.contextmanager
def together(member: Member, meeting: str) -> Iterator[None]:
    """Make a process one of several, as a launcher does, for a while."""
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
    if member.size > 1:
        given = (member.rank, member.rank, member.size, member.size)
        os.environ.update(zip(names, map(str, given), strict=True))
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29500")  # asked for, not used
        place = f"file://{meeting}"
        dist.init_process_group("gloo", place, rank=member.rank, world_size=member.size)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    if member.size > 1:
        dist.destroy_process_group()
        for name in names:
            del os.environ[name]


def descent(net: nn.Module, decay: float) -> Optimizer:
    """Return an optimizer with the groups that trainers make."""
    found = dict(net.named_parameters())
    biases = [p for name, p in found.items() if name.endswith("bias")]
    weights = [p for name, p in found.items() if not name.endswith("bias")]
    groups = [{"params": weights, "weight_decay": decay}, {"params": biases}]
    return SGD(groups, lr=0.02, momentum=0.9)


def rows(step: int, member: Member) -> Tensor:
    """Return the rows of a process, now and then none: together always the same."""
    everything = torch.randn(11, 5, generator=torch.Generator().manual_seed(step))
    cuts = sorted((5 * step + 3 * rank) % 12 for rank in range(1, member.size))
    return everything[slice(*[0, *cuts, 11][member.rank : member.rank + 2])]


def with_accelerate(case: Case, member: Member, resumes: bool) -> nn.Module:
    """Train with Accelerate."""
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=case.parts)
    torch.manual_seed(0)
    net = sngd.reconstruct(mlp(), SETTING.replace(fisher=case.fisher))
    trained, optimizer = accelerator.prepare(net, descent(net, case.decay))

    def steps(first: int, last: int) -> None:
        for step in range(first * case.parts, last * case.parts):
            with accelerator.accumulate(trained):
                loss = trained(rows(step, member)).square().sum() * member.size / 11
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()

    if resumes:
        accelerator.load_state(member.folder)
    else:
        steps(0, SAVED)
        accelerator.save_state(member.folder)
    steps(SAVED, STEPS)
    return net


class Saver(TrainerCallback):
    """Save once."""

    def on_step_end(self, args, state, control, **kwargs):
        """Ask for a file."""
        control.should_save = state.global_step == SAVED


def with_trainer(case: Case, member: Member, resumes: bool) -> nn.Module:
    """Train with the Trainer of transformers, which makes the optimizer."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 11, "n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 8}
    off = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    model = GPT2LMHeadModel(GPT2Config(**sizes, **off, bos_token_id=0, eos_token_id=0))
    net = sngd.reconstruct(model, SETTING.replace(fisher=case.fisher))
    words = torch.randint(0, 11, (36, 7), generator=torch.Generator().manual_seed(1))
    arguments = TrainingArguments(
        member.folder,
        use_cpu=True,
        optim="sgd",
        optim_args="momentum=0.9",
        learning_rate=0.02,
        weight_decay=case.decay,
        max_steps=STEPS,
        per_device_train_batch_size=12 // member.size // case.parts,
        gradient_accumulation_steps=case.parts,
        save_strategy="no",
        report_to="none",
        logging_strategy="no",
        disable_tqdm=True,
    )
    data = [{"input_ids": row, "labels": row} for row in words]
    trainer = Trainer(net, arguments, train_dataset=data, callbacks=[Saver()])
    trainer.train(resume_from_checkpoint=f"{member.folder}/checkpoint-{SAVED}" if resumes else None)
    assert all("momentum_buffer" in state for state in trainer.optimizer.state.values())
    return net


# How many processes train, and how many have written the file; None: it is they who write it.
WALKS = [(1, None), (2, 1), (2, None), (2, 2), (1, 2), (4, 2)]
RUNS: dict[str, tuple[Run, list[Case], int]] = {
    "accelerate": (
        with_accelerate,
        [Case("shared", 0.0, 1), Case("shared", 0.1, 3), Case("kronecker", 0.1, 3)],
        len(WALKS),
    ),
    "trainer": (with_trainer, [Case("shared", 0.0, 1), Case("shared", 0.1, 3)], len(WALKS) - 1),
}


def walks(rank: int, folder: Path, everyone: Barrier) -> dict[str, list[float]]:
    """Return the plain weights after each walk; a process that has no part in one waits."""
    found = {}
    for library, (run, cases, number) in RUNS.items():
        for case in cases:
            name = ", ".join(map(str, (library, *case)))
            for size, writers in WALKS[:number]:
                walk = f"{name}: {size} from {writers}"
                if rank < size:
                    member = Member(rank, size, f"{folder}/{name} {writers or size}")
                    with together(member, f"{folder}/{walk}"):
                        net = sngd.fold(run(case, member, writers is not None))
                    found[walk] = [x for p in net.parameters() for x in p.flatten().tolist()]
                everyone.wait(timeout=120)
    return found


def process(rank: int, folder: Path, everyone: Barrier) -> None:
    """Write what one process found."""
    torch.set_default_dtype(torch.float64)
    try:
        (folder / f"{rank}.json").write_text(json.dumps(walks(rank, folder, everyone)))
    except BaseException:
        everyone.abort()  # nobody waits for it
        raise


def main(folder: Path) -> None:
    """Print the largest difference of each walk from that of one process, over all processes."""
    folder.mkdir()
    context = multiprocessing.get_context("fork")  # so that the libraries are imported once
    everyone = context.Barrier(PROCESSES)
    processes = [
        context.Process(target=process, args=(rank, folder, everyone)) for rank in range(PROCESSES)
    ]
    for each in processes:
        each.start()
    for each in processes:
        each.join()
    assert not any(each.exitcode for each in processes)
    found = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(PROCESSES)]
    gaps = {}
    for walk in found[0]:
        expected = torch.tensor(found[0][f"{walk.partition(':')[0]}: 1 from None"])
        others = [torch.tensor(report[walk]) for report in found if walk in report]
        gaps[walk] = max(float((other - expected).abs().max()) for other in others)
    print(json.dumps(gaps))


if __name__ == "__main__":
    main(Path(sys.argv[4]))
