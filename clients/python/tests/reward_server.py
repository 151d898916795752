"""What a server answers a reward function: each output's length as its total."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.json_format import MessageToDict

from clients.python.tests.conftest import Script, rich_status
from lensd_proto.v1 import analysis_pb2


@dataclass
class RewardServer:
    """Answers each analysis of a stream at once. An output ``bad`` has no reward.

    ``refusals`` are the (code, reason, seconds to wait) with which the first analyses fail.
    """

    refusals: list[tuple[Any, str, float | None]] = field(default_factory=list)
    starts: list[dict[str, Any]] = field(default_factory=list)
    streams: int = 0

    def __call__(self, requests: Iterable[Any], context: Any) -> Iterator[analysis_pb2.AnalyzeManyResponse]:
        self.streams += 1
        for message in requests:
            params = MessageToDict(message.start.params)
            self.starts.append({"model": message.start.model, **params})
            for step in self._script(message.start.request_id, params["items"]).steps:
                yield analysis_pb2.AnalyzeManyResponse(response=step)

    def _script(self, request_id: str, items: list[dict[str, Any]]) -> Script:
        script = Script(request_id).accepted()
        if self.refusals:
            code, reason, retry_s = self.refusals.pop(0)
            return script.failed(rich_status(code, "not now", reason=reason, retry_s=retry_s))
        bad = [item["output"] == "bad" for item in items]
        totals = [
            None if wrong else float(len(item["output"])) for wrong, item in zip(bad, items, strict=True)
        ]
        same = dict.fromkeys(("format", "type", "attribute", "value", "rationale", "self_certainty"), totals)
        errors = ["CONTEXT_EXCEEDED" if wrong else "" for wrong in bad]
        return script.table("rewards", total=totals, error=errors, **same).completed()
