"""Whether several processes train together."""

import torch


def is_in_process_group() -> bool:
    """Say whether this process is one of several that train together."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()
