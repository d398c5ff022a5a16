"""`TORCH_TRACE=folder` collects plans and graphs beside what torch collects."""

import json
import subprocess
import sys

PROGRAM = """
import torch
from torch import nn
import sngd_compile as sngd

model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
x = torch.randn(5, 3)
for net in (
    torch.compile(sngd.reconstruct(model), backend="eager", fullgraph=True),
    torch.compile(model, backend="sngd", options={"inner_backend": "eager"}),
):
    net(x).sum().backward()
"""


def artifacts(folder) -> dict[str, list[str]]:
    """Read the texts of each artifact: a line of JSON, then its payload behind a tab."""
    found: dict[str, list[str]] = {}
    (file,) = folder.iterdir()
    payload: list[str] = []
    for line in file.read_text().splitlines():
        if line.startswith("\t"):
            payload.append(line[1:])
            continue
        payload = []
        record = json.loads(line.partition("] ")[2])
        name = record.get("artifact", {}).get("name", "")
        if name.startswith("sngd_"):
            found.setdefault(name, []).append(payload)
    return {name: ["\n".join(lines) for lines in texts] for name, texts in found.items()}


def test_the_plans_and_the_graphs_of_both_apis_are_artifacts(tmp_path):
    subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={"TORCH_TRACE": str(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    found = artifacts(tmp_path)
    assert set(found) == {"sngd_plan", "sngd_graph"}
    assert len(found["sngd_plan"]) == 2
    for plan in found["sngd_plan"]:
        assert all(name in plan for name in ("0.weight", "2.weight"))
        assert "linear" in plan
    # Of the reconstructed network one for each layer, then that of the frame.
    graphs = found["sngd_graph"]
    assert [text.count("observe") > 0 or "add_to_sum" in text for text in graphs] == [True] * 3
