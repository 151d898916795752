"""Which settings change while the daemon runs, and which say that they need a restart."""

from typing import Any

import pytest

from lensd_server.reload import LIVE, change
from lensd_server.settings import Settings


def settings(**sections: Any) -> Settings:
    return Settings.model_validate({"models": {"a": {"source": "dir:/a"}}, **sections})


def test_nothing_changes_without_a_change() -> None:
    found = change(settings(), settings())
    assert (found.settings, found.applied, found.restart) == (settings(), (), ())


def test_what_can_change_does_and_the_rest_says_that_it_needs_a_restart() -> None:
    new = settings(
        server={"grace_s": 1.0, "listen": "127.0.0.1:1"},
        limits={"max_analyses": 3, "max_queued_rows": 7},
        models={"a": {"source": "dir:/b"}, "b": {"source": "dir:/b"}},
    )
    found = change(settings(), new)
    assert found.applied == ("limits.max_analyses", "server.grace_s")
    assert found.restart == ("limits.max_queued_rows", "models.a", "models.b", "server.listen")
    assert (found.settings.server.grace_s, found.settings.limits.max_analyses) == (1.0, 3)
    assert found.settings.server.listen == settings().server.listen
    assert found.settings.models == settings().models


def test_another_number_of_replicas_needs_a_restart() -> None:
    new = settings(models={"a": {"source": "dir:/a", "replicas": 2}})
    found = change(settings(), new)
    assert (found.restart, found.settings.models["a"].replicas) == (("models.a",), 1)


def test_what_needs_a_restart_is_said_again_at_the_next_reload() -> None:
    new = settings(server={"listen": "127.0.0.1:1"})
    assert change(change(settings(), new).settings, new).restart == ("server.listen",)


def test_a_removed_key_returns_to_its_default() -> None:
    found = change(settings(limits={"max_analyses": 3}), settings())
    assert found.settings.limits.max_analyses == settings().limits.max_analyses


@pytest.mark.parametrize("key", sorted(LIVE))
def test_every_live_key_is_a_setting(key: str) -> None:
    section, _, name = key.partition(".")
    assert name in type(getattr(settings(), section)).model_fields


def test_certificates_change_but_whether_there_are_any_needs_a_restart() -> None:
    tls = {"cert": "c", "key": "k", "client_ca": "ca"}
    none = settings(tls=tls)
    one, other = (settings(tls=tls, auth={"certificates": {name: ["read"]}}) for name in ("a", "b"))
    assert change(none, one).restart == change(one, none).restart == ("auth.certificates",)
    found = change(one, other)
    assert found.applied == ("auth.certificates",)
    assert found.settings.auth.certificates == {"b": ("read",)}
