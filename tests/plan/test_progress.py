"""A bar for large models on a terminal, and nothing for anybody else."""

import io
import sys

import pytest

import sngd_compile as sngd
from api import mlp
from sngd_compile import progress


class Terminal(io.StringIO):
    """Says that somebody looks at it."""

    def isatty(self) -> bool:
        """Say so."""
        return True


def terminal_of(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Give errors a terminal, and call models large from two modules on."""
    shown = Terminal()
    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.setattr(progress, "LARGE", 2)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("RANK", raising=False)
    return shown


def test_a_large_model_has_a_bar(monkeypatch):
    terminal = terminal_of(monkeypatch)
    net = sngd.reconstruct(mlp())
    assert "capturing" in terminal.getvalue()
    assert "rewriting" in terminal.getvalue()
    assert "100%" in terminal.getvalue()
    assert list(sngd.fisher_layers(net)) == ["0.weight", "2.weight"]


def test_the_bar_is_gone_after_an_error(monkeypatch):
    terminal = terminal_of(monkeypatch)
    monkeypatch.setattr("sngd_compile.plan.planner.find", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        sngd.reconstruct(mlp())
    assert "capturing" in terminal.getvalue()
    assert terminal.getvalue().endswith("\x1b[2K")  # the line is erased


@pytest.mark.parametrize("why", ["small", "no terminal", "another process"])
def test_nothing_is_shown(monkeypatch, why):
    terminal = terminal_of(monkeypatch)
    if why == "small":
        monkeypatch.setattr(progress, "LARGE", 3)
    elif why == "no terminal":
        monkeypatch.setattr(terminal, "isatty", lambda: False)
    else:
        monkeypatch.setenv("RANK", "1")
    assert len(sngd.fisher_layers(sngd.reconstruct(mlp()))) == 2
    assert terminal.getvalue() == ""
