"""Bugs that trainings drawn at random must meet, in the few runs of `make test`."""

from typing import Any

import torch

from bug import caught_by, wrap
from sngd_compile.fisher.layer import FisherLayer
from sngd_compile.fisher.roots.base import copy_root_
from sngd_compile.fisher.spec import COUNTS
from sngd_compile.training import refresh


@caught_by(("tests/fuzz", "-k", "a_refresh_keeps"))
def a_root_without_its_weights() -> None:
    """A refresh renews a root, and neither moves w' along nor looks."""

    def take(original: Any, attempt: Any, found: Any, held: Any) -> torch.Tensor:
        copy_root_(attempt.site.fisher.root_buffers, found.root)
        return torch.zeros(())

    wrap(refresh._Attempt, "take_", take)


@caught_by(("tests/fuzz", "-k", "resumed"))
def steps_are_not_in_files() -> None:
    """A state says that no step has been taken."""

    def get_extra_state(original: Any, fisher: FisherLayer) -> Any:
        state = original(fisher)
        return torch.cat([torch.zeros_like(state[:COUNTS]), state[COUNTS:]])

    wrap(FisherLayer, "get_extra_state", get_extra_state)
