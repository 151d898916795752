"""Settings: who wins, what is refused, and in which words."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from lensd_server.addresses import is_loopback, socket_path, split_address
from lensd_server.settings import (
    EMBEDDED_NAME,
    EMBEDDED_SOURCE,
    Settings,
    SettingsError,
    load_settings,
    parse_model_flag,
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


@pytest.mark.parametrize(
    "key", ["max_analyses", "max_analyses_per_stream", "max_queued_rows", "max_streams_per_caller"]
)
def test_a_count_that_cannot_be_told_to_callers_is_refused(key: str) -> None:
    toml(f"[limits]\n{key} = {2**32}\n")
    with pytest.raises(SettingsError, match=rf"limits\.{key}.*4294967295"):
        load_settings()


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
        ('[models.a]\nsource = "dir:/a"\nreplicas = 0', r"models\.a\.replicas.*greater than or equal to 1"),
        ('[models.a]\nsource = "dir:/a"\ndtype = "int4"', r"models\.a\.dtype.*float32"),
        ('[models."a/b"]\nsource = "dir:/a"', r"models\.a/b"),
        ('[models.".hidden"]\nsource = "dir:/a"', r"models\.\.hidden"),
        ("[limits]\nmax_analyses = 0", r"limits\.max_analyses.*greater than or equal to 1"),
        ('[server]\nlisten = "50051"', r"server\.listen.*not HOST:PORT"),
        ('[server]\nlisten = "127.0.0.1:99999"', r"server\.listen.*not HOST:PORT"),
        ('[server]\nlisten = "unix:tmp/x"', r"server\.listen.*not unix:/path"),
        ('[server]\nlisten = "unix:/%s"' % ("x" * 107), r"server\.listen.*longer than the 107 bytes"),
        ('[server]\nmetrics_listen = "unix:/tmp/x"', r"server\.metrics_listen.*not HOST:PORT"),
        ('[server]\nallow_insecure = ["metrics"]', r"server\.allow_insecure.*metrics_listen"),
        ('[tls]\ncert = "c"', r"tls.*cert and key go together"),
        ('[tls]\nclient_ca = "c"', r"tls.*give cert and key"),
        ('[auth]\nmode = "none"', r"auth\.mode.*no such setting"),
        ('[auth.certificates]\nops = ["root"]', r"auth\.certificates\.ops.*'read', 'analyze' or 'admin'"),
        ('[auth.certificates]\nops = ["admin"]', r"auth\.certificates.*tls\.client_ca"),
        ("[quota]\nmax_analyses = 0", r"quota\.max_analyses.*greater than or equal to 1"),
        ("[quota.callers.a]\nrows = 1", r"quota\.callers\.a\.rows .*no such setting"),
        ("[server", "not valid TOML"),
        (f"a = {'9' * 5000}", "not valid TOML.*digits"),
        (f"a = {'[' * 9999}{']' * 9999}", "nested too deeply"),
        (
            '[limits]\nmemory_bytes = "8 Gigs"',
            r"^limits\.memory_bytes \(.*\): '8 Gigs' is no size.*\"8 GiB\"",
        ),
        ("[limits]\nmemory_bytes = 0", r"^limits\.memory_bytes .*0 is no size"),
        ("[limits]\nmemory_bytes = true", r"^limits\.memory_bytes .*True is no size"),
        ("[limits]\nmemory_bytes = {cpu = -1}", r"^limits\.memory_bytes .*-1 is no size"),
        *(
            (
                f"[limits.memory_bytes]\n'{name}' = 1",
                rf"^limits\.memory_bytes .*'{name}' is no device.*cuda:0",
            )
            for name in ("cuda0", "CPU", "gpu", "cuda:", "cuda:00", "cpu:0", "")
        ),
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


@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("LENSD_STATE_DIR", "LENSD_SERVER__STATE_DIR"),
        ("LENSD_LISTEN", "LENSD_SERVER__LISTEN"),
        ("LENSD_TLS_CERT", "LENSD_TLS__CERT"),
        ("lensd_loglevel", "LENSD_SERVER__LOG_LEVEL"),
        ("LENSD_DEVICE", "LENSD_MODELS__NAME__DEVICE"),
        ("LENSD_CONFIGS", "LENSD_CONFIG"),
    ],
)
def test_a_variable_without_its_section_is_refused_with_the_one_that_was_meant(
    variable: str, meant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "x")
    with pytest.raises(SettingsError, match=rf"^{variable}: no such setting; did you mean {meant}\? "):
        load_settings()


@pytest.mark.parametrize(("variable", "value"), [("LENSD_QQQ", "1"), ("LENSD_ADMIN_PORT", "50052")])
def test_a_variable_like_no_other_is_refused(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError, match=rf"^{variable}: no such setting.*LENSD_SECTION__KEY"):
        load_settings()


def test_what_kubernetes_sets_for_services_called_lensd_is_let_be(monkeypatch: pytest.MonkeyPatch) -> None:
    for service in ("LENSD", "LENSD_METRICS", "LENSD_SERVER", "LENSD__B"):
        links = {
            "SERVICE_HOST": "10.0.0.1",
            "SERVICE_PORT": "50051",
            "SERVICE_PORT_GRPC": "50051",
            "PORT": "tcp://10.0.0.1:50051",
            "PORT_50051_TCP": "tcp://10.0.0.1:50051",
            "PORT_50051_TCP_PROTO": "tcp",
            "PORT_50051_TCP_PORT": "50051",
            "PORT_50051_TCP_ADDR": "10.0.0.1",
        }
        for name, value in links.items():
            monkeypatch.setenv(f"{service}_{name}", value)
    assert load_settings() == Settings()


@pytest.mark.parametrize("variable", ["LENSD_MODELS", "LENSD_LIMITS__MEMORY_BYTES"])
def test_a_deeply_nested_variable_is_refused(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "[" * 99999)
    with pytest.raises(SettingsError, match="environment: a value is nested too deeply"):
        load_settings()


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ('"8 GiB"', 8 * 2**30),
        ("1000", 1000),
        ('{cpu = "1 KiB", cuda = 2, "cuda:10" = "3"}', {"cpu": 1024, "cuda": 2, "cuda:10": 3}),
    ],
)
def test_memory_is_limited_on_every_device_or_by_name(written: str, read: object) -> None:
    toml(f"[limits]\nmemory_bytes = {written}\n")
    assert load_settings().limits.memory_bytes == read


def test_memory_may_be_limited_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LENSD_LIMITS__MEMORY_BYTES", "1 KiB")
    assert load_settings().limits.memory_bytes == 1024
    monkeypatch.setenv("LENSD_LIMITS__MEMORY_BYTES", '{"cuda": "1 KiB"}')
    assert load_settings().limits.memory_bytes == {"cuda": 1024}


def test_a_missing_file_is_named() -> None:
    with pytest.raises(SettingsError, match=r"nowhere\.toml: No such file"):
        load_settings(Path("nowhere.toml"))


BEYOND = ["0.0.0.0:50051", "[::]:50051", "10.0.0.1:50051", "example.com:50051"]
TLS = {"cert": "c.pem", "key": "k.pem"}
TOKENS = {"token_file": "tokens"}


@pytest.mark.parametrize("key", ["listen", "admin_listen", "metrics_listen"])
@pytest.mark.parametrize("address", BEYOND)
def test_listening_beyond_this_machine_has_to_be_allowed(key: str, address: str) -> None:
    flags: dict[str, Any] = {"server": {key: address}}
    with pytest.raises(SettingsError, match=rf'server\.{key}.*allow_insecure = \["{key}"\]'):
        load_settings(flags=flags)
    for allowed in (True, [key]):
        flags["server"]["allow_insecure"] = allowed
        assert getattr(load_settings(flags=flags).server, key) == address


@pytest.mark.parametrize("key", ["listen", "admin_listen"])
@pytest.mark.parametrize(
    ("sections", "lacking"),
    [
        ({}, r"lacks TLS \(.*\) and authentication \("),
        ({"tls": TLS}, r"lacks authentication \("),
        ({"auth": TOKENS}, r"lacks TLS \("),
    ],
)
def test_listening_beyond_this_machine_needs_both_tls_and_authentication(
    key: str, sections: dict[str, Any], lacking: str
) -> None:
    flags = {"server": {key: "0.0.0.0:1"}}
    with pytest.raises(SettingsError, match=lacking):
        load_settings(flags={**flags, **sections})
    load_settings(flags={**flags, "tls": TLS, "auth": TOKENS})


def test_what_one_listener_may_the_others_may_not() -> None:
    server = {"listen": "0.0.0.0:1", "metrics_listen": "0.0.0.0:2", "allow_insecure": ["metrics_listen"]}
    with pytest.raises(SettingsError, match=r"server\.listen: 0\.0\.0\.0:1.*lacks"):
        load_settings(flags={"server": server})
    load_settings(flags={"server": server, "tls": TLS, "auth": TOKENS})


def test_metrics_beyond_this_machine_have_to_be_allowed_even_with_tls() -> None:
    flags = {"server": {"metrics_listen": "0.0.0.0:1"}, "tls": TLS, "auth": TOKENS}
    with pytest.raises(SettingsError, match=r"server\.metrics_listen.*neither|/metrics knows neither TLS"):
        load_settings(flags=flags)


def test_insecure_listeners_may_be_named_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LENSD_SERVER__LISTEN", "0.0.0.0:1")
    monkeypatch.setenv("LENSD_SERVER__ALLOW_INSECURE", '["listen"]')
    assert load_settings().server.allow_insecure == ("listen",)
    monkeypatch.setenv("LENSD_SERVER__ALLOW_INSECURE", "true")
    assert load_settings().server.allow_insecure is True


def test_a_unix_socket_is_this_machine() -> None:
    assert load_settings(flags={"server": {"admin_listen": "unix:/run/lensd/admin"}})
    assert is_loopback("unix:/run/lensd/admin")
    assert socket_path("unix:/run/lensd/admin") == Path("/run/lensd/admin")


def test_a_caller_has_the_bounds_of_everybody_but_for_its_own() -> None:
    text = "[quota]\nmax_analyses = 4\ntokens_per_minute = 100\n[quota.callers.trainer]\nmax_analyses = 64\n"
    toml(text)
    quota = load_settings().quota
    assert (quota.of("trainer").max_analyses, quota.of("trainer").tokens_per_minute) == (64, 100)
    assert (quota.of("other").max_analyses, quota.of("other").bytes_per_minute) == (4, None)


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
