"""The errors and the warning of this library, and how a name from outside is shown in a text.

A key of `nn.ModuleDict` may come from a file or a request: it is data, shown and never executed.
"""

from __future__ import annotations


def shown(text: str) -> str:
    """Escape what a terminal would obey: control characters, and marks that turn the direction.

    Everything else, accents and other scripts included, stays as it is.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def first_line(error: Exception) -> str:
    """Return class and first line of an error, to name it in another text."""
    return f"{type(error).__name__}: {error}".splitlines()[0]


class SngdError(Exception):
    """Base class of every error that `sngd_compile` raises on purpose."""

    def __init__(self, *args: object) -> None:
        """Escape the control characters of names that the message holds."""
        super().__init__(*(shown(a) if isinstance(a, str) else a for a in args))


class ConfigError(SngdError, ValueError):
    """A `Config` field is outside its range, or an override matches no parameter."""


class ModelError(SngdError, TypeError):
    """The object given is not a network that can be reconstructed or folded."""


class AlreadyReconstructedError(SngdError, RuntimeError):
    """The network, or a part of it, has local Fisher layers already."""


class PlanError(SngdError, RuntimeError):
    """A parameter ended in neither a site nor a skip: a defect of a rule or of the plan."""


class RuleError(SngdError, ValueError):
    """A rule cannot be registered: its name or its targets are missing or taken."""


class MissingExtraError(SngdError, ImportError):
    """An integration needs packages that an extra of this one installs."""


class SngdWarning(UserWarning):
    """Something the user should know about a training run that goes on."""

    def __init__(self, *args: object) -> None:
        """Escape the control characters of names that the message holds."""
        super().__init__(*(shown(a) if isinstance(a, str) else a for a in args))
