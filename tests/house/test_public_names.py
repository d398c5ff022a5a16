"""What `sngd_compile` offers is there, documented, and listed once."""

import inspect
import re

import pytest

import sngd_compile


def test_no_name_is_listed_twice():
    assert len(set(sngd_compile.__all__)) == len(sngd_compile.__all__)


@pytest.mark.parametrize("name", sngd_compile.__all__)
def test_public_name_has_a_docstring_of_its_own(name: str):
    public = getattr(sngd_compile, name)
    assert public.__doc__
    if inspect.isclass(public):
        assert "__doc__" in vars(public)
        inherited = {base.__doc__ for base in public.__mro__[1:]}
        assert public.__doc__ not in inherited


def test_public_functions_speak_of_every_parameter():
    """Where there are several: a single `net` needs no words."""
    functions = [getattr(sngd_compile, name) for name in sngd_compile.__all__]
    missing = [
        f"{function.__name__}({parameter})"
        for function in functions
        if inspect.isfunction(function) and len(inspect.signature(function).parameters) > 1
        for parameter in inspect.signature(function).parameters
        if not re.search(rf"\b{parameter}\b", inspect.getdoc(function) or "")
    ]
    assert missing == []
