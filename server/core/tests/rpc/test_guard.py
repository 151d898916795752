"""Every method of both listeners, with no token, with the wrong scopes and with the right one.

What there is to call is read from the servers as they are built, so that a service somebody adds
is tried, too.
"""

import asyncio
import io
import json
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import structlog

from lensd_proto.v1 import analysis_pb2, models_pb2, server_pb2
from lensd_server.access.access import Access
from lensd_server.access.caller import Scope
from lensd_server.access.identity import Authenticator
from lensd_server.access.tokens import issue_token, revoke_tokens
from lensd_server.rpc.scope import PROBES, SCOPES
from lensd_server.settings import AuthSettings
from lensd_server.telemetry.logging import configure_logging, keep_audit

CHANNELZ = {name for name in SCOPES if name.startswith("/grpc.channelz.")}
SERVED = {"public": sorted(set(SCOPES) - CHANNELZ), "admin": sorted(SCOPES)}
EVERYTHING = [(listener, method) for listener, methods in SERVED.items() for method in methods]
REFUSALS = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)

Said = tuple[grpc.StatusCode, str]


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    return tmp_path / "tokens"


@pytest.fixture
def tokens(token_file: Path) -> dict[str, str]:
    """One token a scope, and one for each that has all the others."""
    made = {scope.value: issue_token(token_file, f"only-{scope.value}", [scope]) for scope in Scope}
    for scope in Scope:
        made[f"not {scope.value}"] = issue_token(
            token_file, f"not-{scope.value}", [other for other in Scope if other is not scope]
        )
    return made


@pytest.fixture
def access(tokens: dict[str, str], token_file: Path) -> Access:
    return Access(Authenticator(AuthSettings(token_file=token_file)))


@pytest.fixture
async def handlers(monkeypatch: pytest.MonkeyPatch) -> list[set[str]]:
    """The methods of each server that is built while the fixture is in force."""
    found: list[set[str]] = []
    by_server: dict[int, set[str]] = {}
    concrete = type(grpc.aio.server())
    original = concrete.add_generic_rpc_handlers

    def record(server: Any, generic: Any) -> None:
        generic = tuple(generic)
        if id(server) not in by_server:
            found.append(by_server.setdefault(id(server), set()))
        for handler in generic:
            by_server[id(server)].update(handler._method_handlers)
        original(server, generic)

    monkeypatch.setattr(concrete, "add_generic_rpc_handlers", record)
    return found


def test_every_method_that_is_served_has_a_scope_and_no_other_has(
    handlers: list[set[str]], served: Any
) -> None:
    public, admin = handlers
    assert sorted(public) == SERVED["public"]
    assert sorted(admin) == SERVED["admin"]


async def say(channel: grpc.aio.Channel, method: str, *tokens: str) -> Said:
    """How a call of any kind begins to end: its code and its reason; OK once a message has come."""
    while (said := await _say(channel, method, *tokens)) == (grpc.StatusCode.INTERNAL, _LOST):
        pass
    return said


#: What grpc.aio says when a stream is refused while it is written to: it has lost the status.
_LOST = "Internal error from Core"


async def _say(channel: grpc.aio.Channel, method: str, *tokens: str) -> Said:
    """On the wire a single request is a stream of one."""

    async def one_empty_message() -> AsyncIterator[bytes]:
        yield b""

    call = channel.stream_stream(method)(
        one_empty_message(), metadata=[("authorization", f"Bearer {token}") for token in tokens]
    )
    try:
        await call.read()
        if not call.done():
            call.cancel()
            return grpc.StatusCode.OK, ""
    except grpc.aio.AioRpcError:
        pass
    except asyncio.CancelledError:
        return grpc.StatusCode.OK, ""
    if await call.details() == _LOST:
        return await call.code(), _LOST
    text = str(dict(await call.trailing_metadata() or ()).get("grpc-status-details-bin", b""))
    known = ("NO_CREDENTIALS", "UNKNOWN_TOKEN", "MALFORMED_TOKEN", "SCOPE_MISSING", "ADMIN_LISTENER_ONLY")
    return await call.code(), next((reason for reason in known if reason in text), "")


@pytest.mark.parametrize(("listener", "method"), EVERYTHING)
async def test_no_method_answers_who_shows_nothing(served: Any, listener: str, method: str) -> None:
    code, reason = await say(getattr(served, listener), method)
    if method in PROBES:
        assert code not in REFUSALS
    else:
        assert (code, reason) == (grpc.StatusCode.UNAUTHENTICATED, "NO_CREDENTIALS")


@pytest.mark.parametrize(("listener", "method"), EVERYTHING)
async def test_no_method_answers_who_has_every_other_scope(
    served: Any, tokens: dict[str, str], listener: str, method: str
) -> None:
    scope = SCOPES[method]
    code, reason = await say(getattr(served, listener), method, tokens[f"not {scope.value}"])
    if method in PROBES:
        assert code not in REFUSALS
    elif listener == "public" and scope is Scope.ADMIN:
        assert (code, reason) == (grpc.StatusCode.PERMISSION_DENIED, "ADMIN_LISTENER_ONLY")
    else:
        assert (code, reason) == (grpc.StatusCode.PERMISSION_DENIED, "SCOPE_MISSING")


@pytest.mark.parametrize(("listener", "method"), EVERYTHING)
async def test_its_own_scope_opens_a_method_where_it_is_served(
    served: Any, tokens: dict[str, str], listener: str, method: str
) -> None:
    scope = SCOPES[method]
    code, reason = await say(getattr(served, listener), method, tokens[scope.value])
    if listener == "public" and scope is Scope.ADMIN:
        assert (code, reason) == (grpc.StatusCode.PERMISSION_DENIED, "ADMIN_LISTENER_ONLY")
    else:
        assert code not in REFUSALS


async def test_a_method_that_does_not_exist_says_no_more(served: Any, tokens: dict[str, str]) -> None:
    code, _ = await say(served.admin, "/lensd.v1.ServerService/Shell", tokens["admin"])
    assert code is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize(
    ("shown", "reason"),
    [
        (["Bearer wrong"], "UNKNOWN_TOKEN"),
        (["Bearer "], "MALFORMED_TOKEN"),
        (["Basic YTpi"], "MALFORMED_TOKEN"),
        ([""], "MALFORMED_TOKEN"),
        (["Bearer a b"], "MALFORMED_TOKEN"),
    ],
)
async def test_a_header_that_is_no_token_is_refused(
    served: Any, refusal: Callable[[Any], Any], shown: list[str], reason: str
) -> None:
    call = served.public.unary_unary("/lensd.v1.ModelService/ListModels")
    said = await refusal(call(b"", metadata=[("authorization", value) for value in shown]))
    assert (said.code, said.reason) == (grpc.StatusCode.UNAUTHENTICATED, reason)


async def test_two_tokens_at_once_are_refused(served: Any, tokens: dict[str, str]) -> None:
    said = await say(served.public, "/lensd.v1.ModelService/ListModels", tokens["read"], tokens["admin"])
    assert said == (grpc.StatusCode.UNAUTHENTICATED, "MALFORMED_TOKEN")


async def test_the_refusal_says_what_to_do_and_shows_no_token(
    served: Any, refusal: Callable[[Any], Any], tokens: dict[str, str]
) -> None:
    call = served.public.unary_unary("/lensd.v1.ModelService/ListModels")
    said = await refusal(call(b"", metadata=[("authorization", f"Bearer {tokens['analyze']}")]))
    assert "needs scope read" in said.message
    assert "only-analyze has analyze" in said.message
    assert said.metadata == {"caller": "only-analyze", "required_scope": "read"}
    assert tokens["analyze"] not in str(said.status)


async def test_a_revoked_token_starts_nothing_more_on_a_stream_that_is_open(
    served: Any, tokens: dict[str, str], token_file: Path
) -> None:
    served.executor.yields("a")
    metadata = [("authorization", f"Bearer {tokens['analyze']}")]
    stream = served.analysis.AnalyzeMany(metadata=metadata)

    async def outcome(request_id: str) -> Any:
        start = analysis_pb2.AnalyzeRequest(request_id=request_id, analyzer="a")
        await stream.write(analysis_pb2.AnalyzeManyRequest(start=start))
        while True:
            response = (await stream.read()).response
            if response.WhichOneof("event") in ("completed", "failed"):
                return response

    assert (await outcome("before")).HasField("completed")
    revoke_tokens(token_file, "only-analyze")
    failed = (await outcome("after")).failed
    assert failed.status.code == grpc.StatusCode.UNAUTHENTICATED.value[0]
    await stream.done_writing()
    assert [request.request_id for request in served.executor.requests] == ["before"]


async def test_the_engine_is_told_who_asks(served: Any, tokens: dict[str, str]) -> None:
    served.executor.yields("a")
    metadata = [("authorization", f"Bearer {tokens['analyze']}")]
    async for _ in served.analysis.Analyze(analysis_pb2.AnalyzeRequest(analyzer="a"), metadata=metadata):
        pass
    (request,) = served.executor.requests
    assert (request.identity, request.caller) == ("only-analyze", "only-analyze")
    assert request.peer.startswith("ipv4:127.0.0.1:")


async def test_operators_acts_and_refusals_are_written_down_without_tokens(
    served: Any, tokens: dict[str, str]
) -> None:
    admin = [("authorization", f"Bearer {tokens['admin']}")]
    stubs = served.stubs(served.admin)
    with structlog.testing.capture_logs() as lines:
        async for _ in stubs.models.LoadModel(models_pb2.LoadModelRequest(name="other"), metadata=admin):
            pass
        with pytest.raises(grpc.aio.AioRpcError):
            await stubs.models.UnloadModel(models_pb2.UnloadModelRequest(name="nowhere"), metadata=admin)
        await stubs.server.ListAnalyses(server_pb2.ListAnalysesRequest(), metadata=admin)
        await say(served.public, "/lensd.v1.ServerService/ListAnalyses", "lensd_" + "x" * 43)
        await say(served.public, "/lensd.v1.ModelService/ListModels", tokens["read"])
    audit = [
        {key: line.get(key) for key in ("event", "caller", "method", "subject", "code", "reason")}
        for line in lines
        if line["event"] in ("admin call", "call refused")
    ]
    refused = audit.pop()
    assert refused["reason"] == "UNKNOWN_TOKEN"
    assert refused["caller"].startswith("ipv4:127.0.0.1:")
    assert [(line["method"].rpartition("/")[2], line["subject"], line["code"]) for line in audit] == [
        ("LoadModel", "other", "OK"),
        ("UnloadModel", "nowhere", "NOT_FOUND"),
        ("ListAnalyses", "", "OK"),
    ]
    assert {line["caller"] for line in audit} == {"only-admin"}
    written = json.dumps([line for line in lines], default=str)
    assert not any(token in written for token in tokens.values())
    assert "xxxx" not in written


@pytest.fixture
def audit_folder(tmp_path: Path, served: Any, restored_audit: None) -> Path:
    """Where the audit of the daemon is kept, counted as the daemon counts it."""
    folder = tmp_path / "audit"
    folder.mkdir()
    configure_logging(stream=io.StringIO())
    keep_audit(folder / "audit.jsonl", served.metrics.audit_lost.inc)
    return folder


async def test_an_audit_that_cannot_be_written_changes_no_answer(
    served: Any, tokens: dict[str, str], audit_folder: Path, refusal: Callable[[Any], Any]
) -> None:
    shutil.rmtree(audit_folder)
    said = await refusal(served.public.unary_unary("/lensd.v1.ModelService/ListModels")(b""))
    assert (said.code, said.reason) == (grpc.StatusCode.UNAUTHENTICATED, "NO_CREDENTIALS")
    assert str(audit_folder) not in f"{said.message}{said.status}"

    stubs, admin = served.stubs(served.admin), [("authorization", f"Bearer {tokens['admin']}")]
    await stubs.models.UnloadModel(models_pb2.UnloadModelRequest(name="tiny"), metadata=admin)
    assert served.metrics.registry.get_sample_value("lensd_audit_lines_lost_total") == 2

    audit_folder.mkdir()  # noqa: ASYNC240
    await stubs.models.UnloadModel(models_pb2.UnloadModelRequest(name="other"), metadata=admin)
    (kept,) = map(json.loads, (audit_folder / "audit.jsonl").read_text().splitlines())
    assert (kept["event"], kept["subject"], kept["code"]) == ("admin call", "other", "OK")
    assert served.metrics.registry.get_sample_value("lensd_audit_lines_lost_total") == 2


class TestClosedHealth:
    """`auth.open_health` off: probes need a token, too."""

    @pytest.fixture
    def access(self, tokens: dict[str, str], token_file: Path) -> Access:
        return Access(Authenticator(AuthSettings(token_file=token_file)), open_health=False)

    @pytest.mark.parametrize("method", sorted(PROBES))
    async def test_a_probe_needs_scope_read(self, served: Any, tokens: dict[str, str], method: str) -> None:
        assert (await say(served.public, method))[0] is grpc.StatusCode.UNAUTHENTICATED
        code, _ = await say(served.public, method, tokens["analyze"])
        assert code is grpc.StatusCode.PERMISSION_DENIED
        assert (await say(served.public, method, tokens["read"]))[0] not in REFUSALS
