"""What this machine has, which kernels would run on it, and what is missing."""

from __future__ import annotations

import platform
import shutil
from importlib import metadata
from typing import Any

import torch

from sngd_kernels.dispatch import LIMITS, choose

PACKAGES = ("sngd-compile", "torch", "triton", "transformers", "accelerate", "lightning", "pandas")

REMEDIES = {
    "triton": "without it PyTorch's own operations run: pip install triton (Linux)",
    "transformers": "needed by --transformers: pip install transformers",
    "accelerate": "needed by transformers' Trainer: pip install accelerate",
    "lightning": "needed by the callback for Lightning: pip install lightning",
    "pandas": "needed by explain(...).to_pandas(): pip install pandas",
    "dot": "needed by graph --format svg: install Graphviz",
}
"""Of what may be missing, by name: what it is for, and how to get it."""


def findings() -> dict[str, Any]:
    """Return versions, devices, the path of each kernel, and what is missing."""
    versions = {name: _version(name) for name in PACKAGES}
    missing = [name for name, version in versions.items() if version is None]
    if shutil.which("dot") is None:
        missing.append("dot")
    cards = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    device = "cuda" if cards else "cpu"
    probe = torch.ones(1, 32, 32, device=device)
    kernels = {name: choose(name, probe) for name in LIMITS}
    return {
        "python": platform.python_version(),
        "versions": {name: version for name, version in versions.items() if version},
        "devices": [f"CPU, {torch.get_num_threads()} threads", *cards],
        "kernels": {name: {"path": c.path, "reason": c.reason} for name, c in kernels.items()},
        "missing": {name: REMEDIES.get(name, "") for name in missing},
    }


def text_of(found: dict[str, Any]) -> str:
    """Return findings as lines."""
    lines = [f"Python {found['python']}"]
    lines += [f"{name} {version}" for name, version in found["versions"].items()]
    lines += [f"device: {device}" for device in found["devices"]]
    lines += [f"kernel {k}: {c['path']} ({c['reason']})" for k, c in found["kernels"].items()]
    lines += [f"missing: {name}, {remedy}" for name, remedy in found["missing"].items()]
    return "\n".join(lines)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
