"""What a layer remembers of its trust region from one step to the next, and in a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import exp, inf, isfinite

LEAST = 1e-3
"""How much of its trust region a layer keeps at the least, so that it can win it back."""


@dataclass
class Trust:
    """How much of its trust region a layer may use.

    Args:
        share: Of the bounds that `Config.trust_radius` and `Config.trust_share` say, in
            [`LEAST`, 1].
        prime_norm: `|w'|` when it was last measured; None where that is due, as after every change
            of the root.
    """

    share: float = 1.0
    prime_norm: float | None = None

    def adapt(self, agreement: float, rate: float) -> None:
        """Grow where steps go on in one direction, and shrink where they take each other back.

        Args:
            agreement: Cosine of the angle between a gradient and the momentum of those before.
            rate: Logarithm of the factor at an agreement of 1.

        Source: arXiv 1703.04782, the multiplicative rule, for the length of a step in place of a
        rate. Tested by tests/training/test_trust_region.py.
        """
        if isfinite(agreement):
            self.share = min(1.0, max(LEAST, self.share * exp(rate * agreement)))

    def fields(self) -> dict[str, str]:
        """Return what `from_fields` takes: all digits, and as many characters of each number."""
        norm = 0.0 if self.prime_norm is None else self.prime_norm
        return {"trust": f"{self.share:.17e}", "prime_norm": f"{norm:.17e}"}

    @classmethod
    def from_fields(cls, fields: Mapping[str, str]) -> Trust:
        """Read them again; files that are older than a field have none of it.

        Raises:
            ValueError: A number is none, or out of its range.
        """
        share, norm = float(fields.get("trust", 1.0)), float(fields.get("prime_norm", 0.0))
        if not (LEAST <= share <= 1.0 and 0.0 <= norm < inf):
            raise ValueError(f"a share of {share} of the trust region, |w'| = {norm}")
        return cls(share, norm or None)
