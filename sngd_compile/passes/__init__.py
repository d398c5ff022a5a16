"""The passes, in the order in which they run; each changes the graph it is given."""

from sngd_compile.passes.associate import associate_
from sngd_compile.passes.observe import observe_
from sngd_compile.passes.reparameterise import reparameterise_
from sngd_compile.passes.runner import Pass, run_passes

PASSES: tuple[Pass, ...] = (reparameterise_, observe_, associate_)

__all__ = ["PASSES", "associate_", "observe_", "reparameterise_", "run_passes"]
