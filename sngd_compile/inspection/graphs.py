"""The graphs of a network, before and after the passes, in the forms that people read."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Mapping

from torch import fx

from sngd_compile.errors import SngdError, shown
from sngd_compile.inspection.drawing import dot_text, mermaid_text
from sngd_compile.plan.report import difference_report, graph_report


class Graphs(dict[str, fx.Graph]):
    """FX graphs of the reconstructed modules by qualified name; prints itself.

    Attributes:
        sources: The Python that runs, by the same names.
    """

    def __init__(
        self,
        graphs: Mapping[str, fx.Graph],
        sources: Mapping[str, str],
        capture: Callable[[], Mapping[str, fx.Graph]],
    ) -> None:
        """Hold the graphs that run, and how those before the passes are had."""
        super().__init__(graphs)
        self.sources = sources
        self._capture = capture

    def __str__(self) -> str:
        """Return every graph as assignments, with the pass that put a node there, and for what."""
        return _joined({name: graph_report(graph) for name, graph in self.items()})

    @property
    def before(self) -> dict[str, fx.Graph]:
        """The graphs as they are captured, before any pass; captured anew each time."""
        captured = self._capture()
        return {name: captured[name] for name in self if name in captured}

    def difference(self) -> str:
        """Return what the passes changed, a line a node, `-` before and `+` after."""
        before = self.before
        return _joined(
            {
                name: difference_report(graph_report(before[name]), graph_report(graph))
                for name, graph in self.items()
                if name in before
            }
        )

    def python(self) -> str:
        """Return the Python that runs, one function a module."""
        return _joined({name: self.sources[name] for name in self}, "# ")

    def mermaid(self) -> str:
        """Return a Mermaid flowchart with a block for each module; what a pass made is coloured."""
        return mermaid_text(self)

    def dot(self) -> str:
        """Return a Graphviz digraph with a box for each module; what a pass made is coloured."""
        return dot_text(self)

    def svg(self) -> str:
        """Return the picture that Graphviz draws.

        Raises:
            SngdError: There is no program `dot`, or it failed.
        """
        program = shutil.which("dot")
        if program is None:
            raise SngdError(
                "svg() needs Graphviz, and no program called dot was found: install it (on Debian: "
                "apt-get install graphviz), or take mermaid() or dot()"
            )
        drawn = subprocess.run(
            [program, "-Tsvg"], input=self.dot(), capture_output=True, text=True, check=False
        )
        if drawn.returncode:
            raise SngdError(f"{program} failed: {drawn.stderr.strip()}; dot() is what it was given")
        return drawn.stdout


def _joined(texts: Mapping[str, str], mark: str = "") -> str:
    return "\n\n".join(f"{mark}[{shown(name) or '.'}]\n{text}" for name, text in texts.items())
