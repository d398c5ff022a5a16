"""The words that the glossary retires do not come back."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GLOSSARY = ROOT / "docs" / "glossary.md"
RETIRED = re.findall(
    r"^\| (.+?) \| (.+?) \|$", GLOSSARY.read_text().partition("## Retired words")[2], re.MULTILINE
)[1:]
WORDS = [retired.strip("`") for retired, _ in RETIRED]


def read_by_users() -> list[Path]:
    """Sources and pages; decisions are history, and the glossary has the table itself."""
    pages = (ROOT / "docs").rglob("*.md")
    current = [p for p in pages if p.parent.name != "decisions" and p != GLOSSARY]
    sources = [p for room in ("sngd_compile", "kernels") for p in (ROOT / room).rglob("*.py")]
    return [ROOT / "README.md", *current, *sources]


def comes_back(word: str, text: str) -> bool:
    """Whether a text has the word, over the end of a line too, in capitals or not."""
    pattern = r"\s+".join(map(re.escape, word.split()))
    return re.search(rf"(?<!\w){pattern}(?!\w)", text, re.IGNORECASE) is not None


def test_the_table_is_read():
    assert {"Config.careful", "young roots", "as called"} <= set(WORDS)
    assert len(WORDS) > 20
    assert comes_back("young roots", "from Young\n  roots.")
    assert not comes_back("finer", "refiners")


@pytest.mark.parametrize("word", WORDS)
def test_a_retired_word_does_not_come_back(word: str):
    shown = [path.relative_to(ROOT).as_posix() for path in read_by_users()]
    texts = [path.read_text() for path in read_by_users()]
    assert [name for name, text in zip(shown, texts, strict=True) if comes_back(word, text)] == []
