"""Compiled code of the tests lies where no other process writes, and none that is half written."""

import os

import pytest

from compile_cache import own_compile_cache


@pytest.fixture(autouse=True)
def nobody_claimed_one(monkeypatch):
    """Start as a run of the tests does."""
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    monkeypatch.delenv("TRITON_CACHE_DIR")


def left_after_a_run(build):
    with own_compile_cache(build) as folder:
        folder.mkdir(exist_ok=True)
        (folder / "code.py").touch()
    return folder


def test_a_run_keeps_its_folder_for_the_next(tmp_path):
    folder = left_after_a_run(tmp_path)
    with own_compile_cache(tmp_path) as again:
        assert again == folder
        assert (folder / "code.py").exists()
        assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(folder)
        assert os.environ["TRITON_CACHE_DIR"].startswith(str(folder))
        with own_compile_cache(tmp_path) as inherited:
            assert inherited == folder
    assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ


def test_after_a_run_that_was_interrupted_it_is_empty(tmp_path):
    folder = left_after_a_run(tmp_path)
    with pytest.raises(KeyboardInterrupt), own_compile_cache(tmp_path):
        raise KeyboardInterrupt
    with own_compile_cache(tmp_path):
        assert not folder.exists()


def test_a_run_beside_another_has_its_own(tmp_path, monkeypatch):
    with own_compile_cache(tmp_path) as folder:
        monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
        with own_compile_cache(tmp_path) as other:
            assert other != folder
            assert other.exists()
        assert not other.exists()
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(folder))
    with own_compile_cache(tmp_path) as again:
        assert again == folder
