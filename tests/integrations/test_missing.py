"""An integration without its packages says which extra to install."""

import importlib
import sys

import pytest

import sngd_compile as sngd


@pytest.mark.parametrize("extra", ["transformers", "lightning"])
def test_the_extra_is_named(monkeypatch, extra):
    name = f"sngd_compile.integrations.{extra}"
    monkeypatch.delitem(sys.modules, name, raising=False)
    for module in [extra, *sys.modules]:
        if module.partition(".")[0] == extra:
            monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(sngd.MissingExtraError, match=rf"pip install 'sngd-compile\[{extra}\]'"):
        importlib.import_module(name)
    assert issubclass(sngd.MissingExtraError, ImportError)
