"""Reading back what `explain` prints."""

import re
from itertools import product

RULE = re.compile(r"\n.*\n-+\n")
"""The header of a table."""


def names_in(text: str) -> list[str]:
    """List the names in the first columns of a report's tables, those of grouped lines too."""
    names = []
    for part in RULE.split(text)[1:]:
        for line in part.partition("\n\n")[0].split("\n"):
            name = line.split("  ")[0].partition(" + ")[0]
            found = expanded(name)
            count = re.match(r"\S+(?: \+ \S+)?  x(\d+)(?=  )", line)
            assert len(found) == (int(count[1]) if count else 1), line
            names += found
    return names


def expanded(name: str) -> list[str]:
    """Write `a.{0..2}.b` and `{1,4}.b` out."""
    pieces = re.split(r"(\{[\d.,]+\})", name)
    return ["".join(choice) for choice in product(*(map(_choices, pieces)))]


def _choices(piece: str) -> list[str]:
    if not re.fullmatch(r"\{[\d.,]+\}", piece):
        return [piece]
    if ".." not in piece:
        return piece[1:-1].split(",")
    first, last, *step = map(int, piece[1:-1].split(".."))
    return [str(number) for number in range(first, last + 1, *step)]
