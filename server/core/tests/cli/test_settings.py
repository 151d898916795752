"""Settings: who wins, what is refused, and in which words."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from lensd_server.settings import (
    EMBEDDED_NAME,
    EMBEDDED_SOURCE,
    Settings,
    SettingsError,
    is_loopback,
    load_settings,
    parse_model_flag,
    split_address,
)


@pytest.fixture(autouse=True)
def bare_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No lensd.toml and no LENSD_ variable but a test's own."""
    import os

    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("LENSD_")]:
        monkeypatch.delenv(name)


def toml(text: str, name: str = "lensd.toml") -> Path:
    path = Path(name)
    path.write_text(text)
    return path


def test_defaults_are_those_of_the_contract() -> None:
    settings = load_settings()
    server = settings.server
    assert (server.listen, server.admin_listen) == ("127.0.0.1:50051", "127.0.0.1:50052")
    assert server.metrics_listen == "127.0.0.1:9464"
    assert settings.limits.max_request_bytes == 4 * 1024 * 1024
    assert settings.limits.max_response_bytes == 1024 * 1024
    assert list(settings.models) == [EMBEDDED_NAME] == ["smollm2-135m"]
    assert settings.models[EMBEDDED_NAME].source == EMBEDDED_SOURCE
    assert settings.models[EMBEDDED_NAME].preload


def test_flags_win_over_the_environment_and_that_over_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    toml('[server]\nlisten = "127.0.0.1:1"\nadmin_listen = "127.0.0.1:1"\nmetrics_listen = "127.0.0.1:1"\n')
    monkeypatch.setenv("LENSD_SERVER__ADMIN_LISTEN", "127.0.0.1:2")
    monkeypatch.setenv("LENSD_SERVER__METRICS_LISTEN", "127.0.0.1:2")
    server = load_settings(flags={"server": {"metrics_listen": "127.0.0.1:3"}}).server
    found = (server.listen, server.admin_listen, server.metrics_listen)
    assert found == ("127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3")


def test_a_named_file_is_used_in_place_of_the_one_beside(monkeypatch: pytest.MonkeyPatch) -> None:
    toml("[limits]\nmax_analyses = 1\n")
    other = toml("[limits]\nmax_analyses = 2\n", "other.toml")
    assert load_settings().limits.max_analyses == 1
    assert load_settings(other).limits.max_analyses == 2
    monkeypatch.setenv("LENSD_CONFIG", "other.toml")
    assert load_settings().limits.max_analyses == 2


def test_models_come_from_every_source(monkeypatch: pytest.MonkeyPatch) -> None:
    toml('[models.a]\nsource = "dir:/a"\npin = true\n[models.b]\nsource = "dir:/b"\n')
    monkeypatch.setenv("LENSD_MODELS__C__SOURCE", "dir:/c")
    settings = load_settings(flags={"models": {"b": {"source": "dir:/other", "preload": True}}})
    assert sorted(settings.models) == ["a", "b", "c"]
    assert settings.models["a"].pin
    assert not settings.models["a"].preload
    assert (settings.models["b"].source, settings.models["b"].preload) == ("dir:/other", True)


def test_values_of_the_environment_are_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LENSD_LIMITS__MAX_ANALYSES", "7")
    monkeypatch.setenv("LENSD_PLUGINS__ALLOW", '["lensd-dla"]')
    settings = load_settings()
    assert settings.limits.max_analyses == 7
    assert settings.plugins.allow == ("lensd-dla",)


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError):
        Settings().server.listen = "127.0.0.1:1"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('[server]\nlisten_on = "x"', r"server\.listen_on \(from .*lensd\.toml\): no such setting"),
        ("[servr]", r"servr \(from .*lensd\.toml\): no such setting"),
        ('[models.a]\nsource = "dir:/a"\ncolour = 1', r"models\.a\.colour .*no such setting"),
        ('[models.a]\nsource = "/a"', r"models\.a\.source .*match"),
        ("[models.a]\npreload = true", r"models\.a\.source.*required"),
        ('[models.a]\nsource = "dir:/a"\ndevice = "gpu"', r"models\.a\.device"),
        ('[models.a]\nsource = "dir:/a"\ndtype = "int4"', r"models\.a\.dtype.*float32"),
        ('[models."a/b"]\nsource = "dir:/a"', r"models\.a/b"),
        ('[models.".hidden"]\nsource = "dir:/a"', r"models\.\.hidden"),
        ("[limits]\nmax_analyses = 0", r"limits\.max_analyses.*greater than or equal to 1"),
        ('[server]\nlisten = "50051"', r"server\.listen.*not HOST:PORT"),
        ('[server]\nlisten = "127.0.0.1:99999"', r"server\.listen.*not HOST:PORT"),
        ('[server]\nlisten = "unix:/tmp/x"', r"server\.listen.*not HOST:PORT"),
        ("[server", "not valid TOML"),
    ],
)
def test_what_is_wrong_is_refused_by_its_key(text: str, complaint: str) -> None:
    toml(text)
    with pytest.raises(SettingsError, match=complaint):
        load_settings()


def test_every_fault_is_reported_at_once() -> None:
    toml("[server]\na = 1\n[limits]\nb = 2\n")
    with pytest.raises(SettingsError, match=r"(?s)server\.a.*limits\.b"):
        load_settings()


def test_an_unknown_key_of_the_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LENSD_SERVER__LISTN", "x")
    with pytest.raises(SettingsError, match=r"server\.listn \(from the environment\)"):
        load_settings()


def test_an_unknown_section_of_the_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LENSD_SERVR__LISTEN", "x")
    with pytest.raises(SettingsError, match="LENSD_SERVR__LISTEN: there is no section 'servr'"):
        load_settings()


def test_a_missing_file_is_named() -> None:
    with pytest.raises(SettingsError, match=r"nowhere\.toml: No such file"):
        load_settings(Path("nowhere.toml"))


@pytest.mark.parametrize(
    "text",
    [
        '[auth]\nmode = "mtls"',
        '[auth]\ntokens = "tokens.txt"',
        '[server]\ntls_cert = "cert.pem"',
        '[server]\nclient_ca = "ca.pem"',
    ],
)
def test_protection_that_does_not_exist_is_refused_rather_than_ignored(text: str) -> None:
    toml(text)
    with pytest.raises(SettingsError, match=r"not implemented in this version.*refused rather than ignored"):
        load_settings()


@pytest.mark.parametrize("key", ["listen", "admin_listen", "metrics_listen"])
@pytest.mark.parametrize("address", ["0.0.0.0:50051", "[::]:50051", "10.0.0.1:50051", "example.com:50051"])
def test_listening_beyond_this_machine_has_to_be_allowed(key: str, address: str) -> None:
    flags: dict[str, Any] = {"server": {key: address}}
    with pytest.raises(SettingsError, match=rf"server\.{key}.*neither authenticates.*allow_insecure = true"):
        load_settings(flags=flags)
    flags["server"]["allow_insecure"] = True
    assert getattr(load_settings(flags=flags).server, key) == address


@pytest.mark.parametrize("address", ["127.0.0.1:0", "127.8.8.8:1", "[::1]:50051", "localhost:50051"])
def test_loopback_is_recognised(address: str) -> None:
    assert is_loopback(address)


def test_addresses_are_split() -> None:
    assert split_address("[::1]:50051") == ("::1", 50051)
    assert split_address("localhost:0") == ("localhost", 0)


def test_the_model_flag_is_a_name_and_a_source() -> None:
    assert parse_model_flag("a.b-c=gguf:/x=y.gguf") == ("a.b-c", "gguf:/x=y.gguf")


@pytest.mark.parametrize("text", ["a", "=dir:/a", "a/b=dir:/a", "a=/path"])
def test_a_model_flag_that_is_not_is_explained(text: str) -> None:
    with pytest.raises(SettingsError, match="NAME=SOURCE"):
        parse_model_flag(text)
