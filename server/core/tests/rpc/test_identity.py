"""Callers known by certificate or by socket, and quotas that hold for one caller only."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2

from lensd_api.errors import Unauthenticated
from lensd_proto.v1 import analysis_pb2, analysis_pb2_grpc
from lensd_server.access.access import Access
from lensd_server.access.caller import Scope
from lensd_server.access.certificates import Certificates
from lensd_server.access.identity import Authenticator
from lensd_server.access.quotas import Quotas
from lensd_server.access.tokens import issue_token
from lensd_server.rpc.health import Health
from lensd_server.rpc.listeners import Servicers, build_server, listen
from lensd_server.rpc.readers import Readers
from lensd_server.rpc.scope import Listener
from lensd_server.settings import AuthSettings, LimitSettings, QuotaSettings
from lensd_server.telemetry.metrics import Metrics

Call = Callable[..., Any]


class Idle:
    """Answers nothing: who is let in at all is asked here."""

    def __getattr__(self, name: str) -> Any:
        async def answer(message: Any, call: Any) -> Any:
            from lensd_proto.v1 import server_pb2

            return server_pb2.GetLoadResponse()

        return answer


async def serve(listener: Listener, access: Access, address: str) -> tuple[grpc.aio.Server, str]:
    idle: Any = Idle()
    server = build_server(
        listener,
        Servicers(idle, idle, idle, idle, idle),
        Health().servicer,
        max_request_bytes=1024,
        access=access,
        on_socket=address.startswith("unix:"),
        readers=Readers(LimitSettings(), Metrics()),
    )
    bound = listen(server, address, "test", access.certificates)
    await server.start()
    return server, bound


@pytest.fixture
def auth() -> AuthSettings:
    return AuthSettings(
        certificates={"spiffe://prod/trainer": ("read",), "ops": ("admin",), "unused.example": ("read",)}
    )


@pytest.fixture
async def call(authority: Any, auth: AuthSettings) -> AsyncIterator[Call]:
    """Calls a method on the admin listener, over mTLS."""
    pair = authority.issue("server")
    access = Access(Authenticator(auth), certificates=Certificates(pair.cert, pair.key, authority.ca))
    server, address = await serve(Listener.ADMIN, access, "127.0.0.1:0")

    async def ask(issued: Any, method: str, **options: Any) -> str:
        credentials = grpc.ssl_channel_credentials(
            authority.ca.read_bytes(), issued.key.read_bytes(), issued.cert.read_bytes()
        )
        alone = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.secure_channel(address, credentials, options=alone) as channel:
            try:
                await channel.unary_unary(f"/lensd.v1.ServerService/{method}")(b"", timeout=20, **options)
            except grpc.aio.AioRpcError as error:
                return f"{error.code().name}: {error.details()}"
        return "OK"

    yield ask
    await server.stop(None)


async def test_a_certificate_is_known_by_its_names_and_has_their_scopes(authority: Any, call: Call) -> None:
    trainer = authority.issue("anything", "spiffe://prod/trainer")
    assert await call(trainer, "GetLoad") == "OK"
    denied = await call(trainer, "ListAnalyses")
    assert denied.startswith("PERMISSION_DENIED")
    assert "spiffe://prod/trainer has read" in denied
    operator = authority.issue("ops")  # by its common name
    assert await call(operator, "ListAnalyses") == "OK"
    assert (await call(operator, "GetLoad")).startswith("PERMISSION_DENIED")


async def test_a_certificate_that_nobody_listed_is_refused_by_its_names(authority: Any, call: Call) -> None:
    said = await call(authority.issue("stranger"), "GetLoad")
    assert said.startswith("UNAUTHENTICATED")
    assert "stranger" in said
    assert "[auth.certificates]" in said


class TestWithTokens:
    """Both kinds are known: a token that is shown decides."""

    @pytest.fixture
    def token(self, tmp_path: Path) -> str:
        return issue_token(tmp_path / "tokens", "clerk", [Scope.READ])

    @pytest.fixture
    def auth(self, token: str, tmp_path: Path) -> AuthSettings:
        return AuthSettings(token_file=tmp_path / "tokens", certificates={"ops": ("admin",)})

    async def test_a_token_that_is_shown_decides(self, authority: Any, call: Call, token: str) -> None:
        operator = authority.issue("ops")
        as_clerk = {"metadata": [("authorization", f"Bearer {token}")]}
        assert await call(operator, "ListAnalyses") == "OK"
        assert "clerk has read" in await call(operator, "ListAnalyses", **as_clerk)
        assert await call(operator, "GetLoad", **as_clerk) == "OK"
        wrong = {"metadata": [("authorization", "Bearer nonsense")]}
        assert (await call(operator, "ListAnalyses", **wrong)).startswith("UNAUTHENTICATED")


def test_a_reload_changes_what_a_certificate_is_for(auth: AuthSettings) -> None:
    authenticator = Authenticator(auth)
    assert authenticator.identify([], {"ops"}, on_socket=False).scopes == {Scope.ADMIN}
    authenticator.take_over(AuthSettings(certificates={"ops": ("read",)}))
    assert authenticator.identify([], {"ops"}, on_socket=False).scopes == {Scope.READ}
    with pytest.raises(Unauthenticated):
        authenticator.identify([], {"spiffe://prod/trainer"}, on_socket=False)


async def test_whoever_may_open_the_socket_is_the_operator(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    reader = issue_token(file, "reader", [Scope.READ])
    access = Access(Authenticator(AuthSettings(token_file=file)))
    server, address = await serve(Listener.ADMIN, access, f"unix:{tmp_path}/admin.sock")
    async with grpc.aio.insecure_channel(address) as channel:
        ask = channel.unary_unary("/lensd.v1.ServerService/ListAnalyses")
        await ask(b"")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await ask(b"", metadata=[("authorization", f"Bearer {reader}")])
        assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
    await server.stop(None)


class TestQuotas:
    """Through the whole RPC layer."""

    @pytest.fixture
    def tokens(self, tmp_path: Path) -> dict[str, str]:
        file = tmp_path / "tokens"
        return {name: issue_token(file, name, [Scope.ANALYZE, Scope.READ]) for name in ("a", "b")}

    @pytest.fixture
    def access(self, tokens: dict[str, str], tmp_path: Path) -> Access:
        return Access(
            Authenticator(AuthSettings(token_file=tmp_path / "tokens")),
            Quotas(QuotaSettings(max_analyses=1, bytes_per_minute=100_000)),
        )

    async def test_one_callers_analyses_leave_the_others_alone(
        self, served: Any, refusal: Call, tokens: dict[str, str]
    ) -> None:
        release = served.executor.waits("slow")

        def analyze(name: str, request_id: str) -> Any:
            request = analysis_pb2.AnalyzeRequest(analyzer="slow", request_id=request_id)
            stub = analysis_pb2_grpc.AnalysisServiceStub(served.public)
            return stub.Analyze(request, metadata=[("authorization", f"Bearer {tokens[name]}")])

        first = analyze("a", "a-1")
        assert (await first.read()).HasField("accepted")
        said = await refusal(analyze("a", "a-2"))
        assert (said.code, said.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED")
        assert said.metadata == {"caller": "a", "quota": "max_analyses", "limit": "1"}
        quota, retry = error_details_pb2.QuotaFailure(), error_details_pb2.RetryInfo()
        assert any(detail.Unpack(quota) for detail in said.status.details)
        assert any(detail.Unpack(retry) for detail in said.status.details)
        assert (quota.violations[0].subject, quota.violations[0].quota_id) == ("a", "max_analyses")
        assert said.trailing["grpc-retry-pushback-ms"] == "1000"
        other = analyze("b", "b-1")
        assert (await other.read()).HasField("accepted")
        release.set()
        for call in (first, other):
            while (await call.read()) is not grpc.aio.EOF:
                pass
        assert await analyze("a", "a-3").read() is not grpc.aio.EOF

    async def test_bytes_of_requests_and_results_are_one_callers_own(
        self, served: Any, refusal: Call, tokens: dict[str, str]
    ) -> None:
        def models(name: str, request: bytes = b"") -> Any:
            method = served.public.unary_unary("/lensd.v1.ModelService/ListModels")
            return method(request, metadata=[("authorization", f"Bearer {tokens[name]}")])

        unknown_field = b"\x7a" + b"\xa0\x8d\x06" + b"x" * 100_000
        await models("a", unknown_field)
        said = await refusal(models("a"))
        assert said.metadata["quota"] == "bytes_per_minute"
        await models("b")
