"""What both clients are made of: connections, options of a call, admin scope."""

from typing import Any

from lensd_client._retry import Attempts
from lensd_client._status import error_from_call
from lensd_client._trace import trace_metadata
from lensd_client.channels import Connection, Path_
from lensd_client.errors import LensdError, PermissionDenied, ServerUnavailable
from lensd_client.requests import Request, duration, to_message
from lensd_proto.v1 import analysis_pb2

DEFAULT_TARGET = "127.0.0.1:50051"


class ClientBase:
    """Settings of a client. Neither kind connects before it is used."""

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        admin_target: str | None = None,
        token: str | None = None,
        ca: Path_ | None = None,
        cert: Path_ | None = None,
        key: Path_ | None = None,
        tls: bool = False,
        token_file: Path_ | None = None,
        token_in_clear: bool = False,
        timeout_s: float | None = None,
        wait_for_ready: bool = False,
    ) -> None:
        """Settings of every call.

        ``admin_target`` is where loading, unloading and the like go, ``target`` when it is not
        given. ``ca``, ``cert`` and ``key`` are PEM files; giving any, or ``tls``, turns TLS on.
        ``token``, or what ``token_file`` holds at each call, is sent over TLS or to this machine only,
        unless ``token_in_clear`` says otherwise. ``timeout_s`` is the deadline of
        calls that set none; there is no other default. ``wait_for_ready`` lets calls wait for
        the server to come up instead of failing, for as long as their deadline lets them.

        Raises ValueError for settings that make no sense together.
        """
        if timeout_s is not None:
            duration(timeout_s)
        given: dict[str, Any] = {
            "token": token,
            "ca": ca,
            "cert": cert,
            "key": key,
            "tls": tls,
            "token_file": token_file,
            "token_in_clear": token_in_clear,
        }
        self._connection = Connection(target, **given)
        self._admin = Connection(admin_target, **given) if admin_target else self._connection
        self._timeout_s = timeout_s
        self._wait_for_ready = wait_for_ready
        self._open()

    def _open(self) -> None:
        """Where channels are made, if that needs no event loop."""

    @property
    def target(self) -> str:
        """Where analyses run."""
        return self._connection.target

    @property
    def admin_target(self) -> str:
        """Where calls of admin scope go."""
        return self._admin.target

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.target!r})"

    def _attempts(self, timeout_s: float | None = None) -> Attempts:
        """Those of a call that begins now. Raises ValueError for a timeout that makes no sense."""
        if timeout_s is not None:
            duration(timeout_s)
        return Attempts(self._timeout_s if timeout_s is None else timeout_s)

    def _options(self, attempts: Attempts) -> dict[str, Any]:
        """Keyword arguments of one attempt of a gRPC call."""
        return {
            "timeout": attempts.left_s(),
            "metadata": (*self._connection.metadata, *trace_metadata()),
            "wait_for_ready": self._wait_for_ready or None,
        }

    def _explain(self, error: Any) -> LensdError:
        return error_from_call(error, self.target)

    def _explain_admin(self, error: Any) -> LensdError:
        explained = error_from_call(error, self.admin_target)
        if isinstance(explained, PermissionDenied) and self._admin is self._connection:
            explained.message += " (this needs admin scope: give the server's admin listener as admin_target)"
            explained.args = (explained.message,)
        return explained

    def _not_ready(self, timeout_s: float) -> ServerUnavailable:
        return ServerUnavailable(
            f"{self.target} did not become ready within {timeout_s:g} s; "
            "start a server with `lensd serve`, or give the address of one as the target"
        )


def single_message(request: Request) -> analysis_pb2.AnalyzeRequest:
    """The message of ``analyze``, whose timeout is the call's own deadline."""
    message = to_message(request)
    message.ClearField("timeout")
    return message
