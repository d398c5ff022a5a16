"""An integration without its packages says which extra to install."""

import importlib
import sys

import pytest

import sngd_compile as sngd


@pytest.mark.parametrize("extra", ["transformers", "lightning"])
def test_the_extra_is_named(monkeypatch, extra):
    name = f"sngd_compile.integrations.{extra}"
    monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, extra, None)
    with pytest.raises(sngd.MissingExtraError, match=rf"pip install 'sngd-compile\[{extra}\]'"):
        importlib.import_module(name)
    assert issubclass(sngd.MissingExtraError, ImportError)
