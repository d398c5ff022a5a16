"""`python -m sngd_compile`: the same as `sngd-compile`."""

from __future__ import annotations

import sys

from sngd_compile.command.app import main

if __name__ == "__main__":
    sys.exit(main())
