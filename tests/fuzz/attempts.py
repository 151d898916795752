"""One attempt at the daemon, made from a seed and an index alone, so that either of them tells it all."""

import random
from dataclasses import dataclass

from google.protobuf import text_format
from google.protobuf.message import Message

from lensd_proto.v1 import analysis_pb2
from tests.fuzz import noise
from tests.fuzz.messages import World, analysis, anything, named
from tests.fuzz.methods import BY_NAME, METHODS, Method

_Metadata = tuple[tuple[str, str | bytes], ...]

#: Most analyses of tiny models are done by then; what is not, such as a fit, is broken off.
_PATIENCE_S, _GREAT_PATIENCE_S = 0.5, 5.0
_ANALYZE, _ANALYZE_MANY = 0.4, 0.15


@dataclass(frozen=True, slots=True)
class Attempt:
    """A call as it is to be made.

    ``leave_after`` is after how many answers its caller leaves, 0 for at once; ``half_closes`` whether
    the caller of a stream says that it has said all.
    """

    index: int
    method: Method
    on_admin: bool
    payloads: tuple[bytes, ...]
    metadata: _Metadata
    timeout_s: float
    leave_after: int | None
    half_closes: bool

    def __str__(self) -> str:
        door = "admin" if self.on_admin else "public"
        how = f"timeout {self.timeout_s} s, leaves after {self.leave_after}, half-closes {self.half_closes}"
        lines = [f"attempt {self.index}: {self.method.path} on the {door} listener; {how}; {self.metadata}"]
        return "\n".join([*lines, *(_shown(self.method, payload) for payload in self.payloads)])


def attempt(seed: int, index: int, world: World) -> Attempt:
    """The ``index``-th attempt of ``seed``; the first ones go through every method and both listeners."""
    rng = random.Random(f"{seed}/{index}")
    rounds = 2 * len(METHODS)
    method = METHODS[index // 2 % len(METHODS)] if index < rounds else _method(rng)
    on_admin = (
        bool(index % 2) if index < rounds else rng.random() < (0.2 if "Analyze" in method.name else 0.6)
    )
    if method.name == "AnalyzeMany":
        payloads = _conversation(rng, world)
    else:
        count = rng.choice((0, 1, 2, 3, 6)) if method.request_streaming else 1
        payloads = [_request(rng, method, world).SerializeToString() for _ in range(count)]
    if payloads and rng.random() < 0.25:
        place = rng.randrange(len(payloads))
        payloads[place] = noise.almost(rng, payloads[place])
    leave_after = rng.choice((0, 0, 1, 2, 4)) if rng.random() < 0.1 else None
    timeout_s = _timeout(rng)
    if timeout_s > _GREAT_PATIENCE_S and leave_after is None:
        leave_after = rng.choice((1, 2))  # a fit would go on for as long as it takes
    if method.is_watch:
        timeout_s = min(timeout_s, 0.2)
    # Otherwise both sides would wait for each other until the deadline, which may be far.
    half_closes = leave_after is None or timeout_s > _GREAT_PATIENCE_S or rng.random() < 0.5
    return Attempt(
        index, method, on_admin, tuple(payloads), _metadata(rng), timeout_s, leave_after, half_closes
    )


def _method(rng: random.Random) -> Method:
    kind = rng.random()
    if kind < _ANALYZE:
        return BY_NAME["Analyze"]
    return BY_NAME["AnalyzeMany"] if kind < _ANALYZE + _ANALYZE_MANY else rng.choice(METHODS)


def _request(rng: random.Random, method: Method, world: World) -> Message:
    if method.name == "Analyze" and rng.random() < 0.9:
        return analysis(rng, world)
    return named(rng, world, method.request) if rng.random() < 0.7 else anything(rng, method.request)


def _conversation(rng: random.Random, world: World) -> list[bytes]:
    """What a caller says on one stream: starts, some of them twice, and cancels early, late and again."""
    said: list[bytes] = []
    started = ["nobody", ""]
    for _ in range(rng.randrange(6)):
        kind = rng.random()
        if kind < 0.6:
            request = analysis(rng, world, sound=0.05)
            started.append(request.request_id)
            said.append(_start(request))
        elif kind < 0.9:
            cancel = analysis_pb2.Cancel(request_id=rng.choice(started))
            said.append(analysis_pb2.AnalyzeManyRequest(cancel=cancel).SerializeToString())
        else:
            said.append(anything(rng, analysis_pb2.AnalyzeManyRequest).SerializeToString())
        if rng.random() < 0.2:
            said.append(said[-1])
    return said


def _start(request: analysis_pb2.AnalyzeRequest) -> bytes:
    """By hand, since protobuf does not put into a message what is nested too deeply to be read."""
    raw = request.SerializeToString()
    length, rest = bytearray(), len(raw)
    while rest > 127:
        length.append(rest & 127 | 128)
        rest >>= 7
    return bytes([0x0A, *length, rest]) + raw


def _timeout(rng: random.Random) -> float:
    kind = rng.random()
    if kind < 0.04:
        return 0.0
    if kind < 0.08:
        return rng.choice((1e-6, 1e-3, 0.01))
    if kind < 0.1:
        return rng.choice((1e6, 1e9))
    return _GREAT_PATIENCE_S if kind < 0.2 else _PATIENCE_S


def _metadata(rng: random.Random) -> _Metadata:
    if rng.random() < 0.7:
        return ()
    words = ("", "x", "Bearer", "Bearer x", "Basic eDp4", "0" * 55, "%00", "a=b", "~", "-1", "x" * 1000, "{}")
    trace = (
        f"00-{rng.randrange(16**32):032x}-{rng.randrange(16**16):016x}-{rng.choice(('00', '01', 'ff', 'zz'))}"
    )
    keys = (
        "authorization", "x-request-id", "traceparent", "tracestate", "baggage", "user", "x-forwarded-for",
        "grpc-previous-rpc-attempts", "content-language", "cookie", "lensd-identity", "host",
    )  # fmt: skip
    pairs: list[tuple[str, str | bytes]] = [
        (key := rng.choice(keys), trace if key == "traceparent" and rng.random() < 0.5 else rng.choice(words))
        for _ in range(rng.randrange(1, 4))
    ]
    if rng.random() < 0.2:
        pairs.append(("grpc-trace-bin", rng.randbytes(rng.randrange(40))))
    return tuple(pairs)


def _shown(method: Method, payload: bytes) -> str:
    try:
        return f"{len(payload)} bytes: {_line(method.request.FromString(payload))}"
    except Exception:  # protobuf's, of several kinds: it is shown as it is
        return f"{len(payload)} bytes that are no {method.request.DESCRIPTOR.name}: {payload[:500].hex()}"


def _line(message: Message) -> str:
    return text_format.MessageToString(message, as_one_line=True, as_utf8=True)[:1500]
