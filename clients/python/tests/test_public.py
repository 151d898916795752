"""What the package promises to those who import it."""

import inspect
import subprocess
import sys
from typing import Any

import pytest

import lensd_client
from lensd_client import AsyncClient, AsyncRun, Client, Run

_TWINS = {
    "__enter__": "__aenter__",
    "__exit__": "__aexit__",
    "__iter__": "__aiter__",
    "__next__": "__anext__",
}


#: What makes an AsyncRun something that asyncio can make a task of.
_COROUTINE = {"send", "throw", "close"}


def test_all_is_what_can_be_imported() -> None:
    public = {
        name
        for name, value in vars(lensd_client).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    }
    assert set(lensd_client.__all__) == public
    assert lensd_client.__all__ == sorted(lensd_client.__all__, key=lambda n: (not n.isupper(), n))


@pytest.mark.parametrize(("sync", "aio"), [(Client, AsyncClient), (Run, AsyncRun)])
def test_twins_have_the_same_methods_and_arguments(sync: type, aio: type) -> None:
    def signatures(kind: type) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, member in inspect.getmembers(kind):
            if (name.startswith("_") and name != "__init__") or (kind is AsyncRun and name in _COROUTINE):
                continue
            if isinstance(member, property):
                found[name] = "property"
            else:
                parameters = inspect.signature(member).parameters.values()
                found[name] = [(p.name, p.kind, p.default) for p in parameters]
        return found

    assert signatures(sync) == signatures(aio)
    for one, other in _TWINS.items():
        assert hasattr(sync, one) == hasattr(aio, other)


@pytest.mark.parametrize("kind", [Client, AsyncClient, Run, AsyncRun])
def test_every_public_method_says_what_it_does(kind: type) -> None:
    silent = [
        name
        for name, member in inspect.getmembers(kind)
        if not name.startswith("_") and not inspect.getdoc(member)
    ]
    assert silent == []


@pytest.mark.parametrize("module", ["lensd_client", "lensd_client.lensctl", "lensd_client.plot"])
def test_it_imports_where_torch_and_the_extras_cannot_be(module: str) -> None:
    blocked = ["torch", "pandas", "xarray", "matplotlib", "lensd_server", "lensd_api"]
    code = f"import sys; sys.modules.update(dict.fromkeys({blocked!r})); import {module}"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=60)


def test_missing_extras_name_the_command_that_installs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("pandas", "xarray", "matplotlib", "matplotlib.pyplot"):
        monkeypatch.setitem(sys.modules, name, None)
    table = lensd_client.Table({"value": lensd_client.Tensor.from_bytes(bytes(8), "float64", (1,)).array})
    tensor = lensd_client.Tensor.from_bytes(bytes(16), "float64", (1, 2))
    for call, extra in (
        (table.to_pandas, "pandas"),
        (tensor.to_xarray, "xarray"),
        (table.plot, "plot"),
        (tensor.plot, "plot"),
    ):
        with pytest.raises(ImportError, match=rf"pip install 'lensd-client\[{extra}\]'"):
            call()
