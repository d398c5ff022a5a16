"""What the page on architecture names is there, and every room is named."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
NAMED = set(
    re.findall(
        r"`((?:sngd_compile|kernels|tests|docs)/[\w/.]*)`",
        (ROOT / "docs" / "architecture.md").read_text(),
    )
)


def test_every_path_on_the_page_exists():
    assert len(NAMED) > 40
    assert [path for path in sorted(NAMED) if not (ROOT / path).exists()] == []


def test_every_room_is_on_the_page():
    rooms = {
        f"sngd_compile/{folder.parent.name}/"
        for folder in (ROOT / "sngd_compile").glob("*/__init__.py")
    }
    assert rooms <= NAMED
