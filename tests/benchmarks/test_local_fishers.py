"""The comparison of local Fishers runs from end to end, and every one of them learns."""

import json

import pytest
import typer
from typer.testing import CliRunner

from benchmarks_tiny import TINY
from paper import local_fishers


@pytest.mark.usefixtures("thread_count")
def test_comparison_from_end_to_end(tmp_path, monkeypatch):
    monkeypatch.setattr(local_fishers, "wanted", lambda names: [TINY])
    app = typer.Typer()
    app.command()(local_fishers.main)
    options = ["--steps", "12", "--seeds", "1", "--rates", "2", "--output", str(tmp_path)]
    done = CliRunner().invoke(app, options)
    assert done.exit_code == 0, done.output
    content = json.loads((tmp_path / "local_fishers_tiny.json").read_text())
    results = {result["contender"]: result for result in content["contenders"]}
    assert list(results) == ["SGD", *(c.name for c in local_fishers.FISHERS)]
    for result in results.values():
        (run,) = result["runs"]
        first, last = run["points"][0], run["points"][-1]
        assert last[2] < first[2]
