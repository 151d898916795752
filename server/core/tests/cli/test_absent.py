"""What a start leaves out."""

import json
import subprocess
import sys

import pytest

from lensd_server.absent import absent

# A package of the standard library that nothing here needs.
SPARE = "wsgiref"


def test_what_is_absent_cannot_be_imported_until_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, SPARE, raising=False)
    with absent(SPARE), pytest.raises(ModuleNotFoundError):
        __import__(SPARE)
    __import__(SPARE)
    assert sys.modules[SPARE].__name__ == SPARE


def test_what_has_been_imported_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    module = __import__(SPARE)
    with absent(SPARE):
        assert __import__(SPARE) is module
    assert sys.modules[SPARE] is module


def test_it_can_be_imported_again_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, SPARE, raising=False)
    with pytest.raises(ZeroDivisionError), absent(SPARE):
        _ = 1 / 0
    __import__(SPARE)


def test_the_daemon_and_its_models_need_no_scipy() -> None:
    program = """
import json, sys
from lensd_server.absent import absent
with absent("scipy"):
    import lensd_server.app
    from transformers import LlamaForCausalLM
print(json.dumps([name for name in sys.modules if name.partition(".")[0] == "scipy"]))
"""
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(found.stdout) == []
