"""When one Fisher layer observes and when it refreshes, counted in optimizer steps."""

from __future__ import annotations

import torch

from sngd_compile.config import Config

OBSERVING, SEED, MOST_ROWS = range(3)  # entries of Schedule.gate
GATE_ENTRIES = 3
ALL_ROWS = -1  # value of MOST_ROWS


class Schedule:
    """Count optimizer steps and keep the gate that the observing op reads.

    Args:
        config: Which steps are observed, which are followed by a refresh.
        size: D, weights of one output, bias included.

    Attributes:
        gate: int64 `[3]` on the host: whether to observe now, the seed of the drawn rows, and how
            many at the most. A tensor, read at run time, so that a change of step neither
            recompiles a graph nor waits for a device.
        steps: Optimizer steps done.
        observed_steps: Of these, how many were observed since the last refresh.
        root_step: After how many steps the present root was made; 0 where none was made yet.
    """

    def __init__(self, config: Config, size: int) -> None:
        """Start before step 0."""
        self.gate = torch.zeros(GATE_ENTRIES, dtype=torch.int64, device="cpu")
        self.configure_(config, size, 0, 0)

    def configure_(
        self, config: Config, size: int, steps: int, observed_steps: int, root_step: int = 0
    ) -> None:
        """Take a configuration, and continue after `steps` optimizer steps."""
        self.config = config
        most_rows = 4 * size if config.max_rows == "auto" else config.max_rows
        self.gate[MOST_ROWS] = ALL_ROWS if most_rows is None else most_rows
        self.restore(steps, observed_steps, root_step)

    def restore(self, steps: int, observed_steps: int, root_step: int = 0) -> None:
        """Continue after `steps` optimizer steps."""
        self.steps, self.observed_steps, self.root_step = steps, observed_steps, root_step
        self.observing = self.config.is_observed(steps)
        self._write_gate()
        self._look_ahead()

    def advance(self) -> bool:
        """Count one optimizer step; return whether a refresh is due."""
        self.observed_steps += self.observing
        self.steps += 1
        if self.steps < self._next_event:
            return False  # as in most steps of most layers
        observing = self.config.is_observed(self.steps)
        if observing or self.observing:
            self.observing = observing
            self._write_gate()
        self._look_ahead()
        return self.config.is_refreshed(self.steps)

    @property
    def counts(self) -> tuple[int, int, int]:
        """What `restore` takes."""
        return self.steps, self.observed_steps, self.root_step

    @property
    def most_rows(self) -> int:
        """How many rows of a pass are drawn; `ALL_ROWS` where all are taken."""
        return int(self.gate[MOST_ROWS])

    @property
    def observed_in_all(self) -> int:
        """Optimizer steps done that were observed."""
        every = self.config.observe_every
        early = (step for step in self.config.early_observations if step % every)
        return -(-self.steps // every) + sum(step < self.steps for step in early)

    @property
    def root_age(self) -> int:
        """Optimizer steps since the present root was made; all, where none was made yet."""
        return self.steps - self.root_step

    def note_root(self) -> None:
        """Note that the present root was made now."""
        self.root_step = self.steps

    def _look_ahead(self) -> None:
        """Note until which step nothing changes: one that is observed ends with it."""
        self._next_event = self.steps + 1 if self.observing else self.config.next_event(self.steps)

    def _write_gate(self) -> None:
        self.gate[OBSERVING] = int(self.observing)
        self.gate[SEED] = self.config.seed + self.steps
