"""AnalyzerService: what the server can compute, and for which of its models."""

from collections.abc import Sequence

from google.protobuf import json_format
from google.protobuf.struct_pb2 import Struct

from lensd_api.analyzer import Requirements
from lensd_api.anatomy import Unit
from lensd_proto.v1 import analyzers_pb2
from lensd_server.engine.events import ModelState, ModelStatus, RegisteredAnalyzer
from lensd_server.plugins import AnalyzerRegistry, PluginRecord, PluginStatus
from lensd_server.rpc import wire
from lensd_server.rpc.dispatch import Call
from lensd_server.rpc.ports import Models
from lensd_server.rpc.status import clip
from lensd_server.rpc.values import to_struct

_STATUSES = {
    PluginStatus.ACTIVE: analyzers_pb2.PLUGIN_STATUS_ACTIVE,
    PluginStatus.BROKEN: analyzers_pb2.PLUGIN_STATUS_BROKEN,
    PluginStatus.DISABLED: analyzers_pb2.PLUGIN_STATUS_DISABLED,
    PluginStatus.QUARANTINED: analyzers_pb2.PLUGIN_STATUS_QUARANTINED,
}
_MAX_PROBLEM = 500


class AnalyzerServicer:
    """Answers from the registry and the state of the models."""

    def __init__(self, registry: AnalyzerRegistry, models: Models) -> None:
        self._registry = registry
        self._models = models

    async def list_analyzers(
        self, message: analyzers_pb2.ListAnalyzersRequest, call: Call
    ) -> analyzers_pb2.ListAnalyzersResponse:
        """Analyzers in brief, and every installed plugin."""
        statuses = self._models.statuses()
        return analyzers_pb2.ListAnalyzersResponse(
            analyzers=[_brief(registered, statuses) for registered in self._registry.analyzers()],
            plugins=[_plugin(record) for record in self._registry.plugins()],
        )

    async def get_analyzer(
        self, message: analyzers_pb2.GetAnalyzerRequest, call: Call
    ) -> analyzers_pb2.GetAnalyzerResponse:
        """One analyzer in full."""
        wire.check_analyzer_name(message.name)
        registered = self._registry.resolve(message.name)
        analyzer = registered.analyzer
        described = _brief(registered, self._models.statuses())
        described.params_schema.CopyFrom(params_schema(registered))
        described.results.extend(
            analyzers_pb2.ResultDeclaration(name=spec.name, kind=spec.kind, description=spec.description)
            for spec in analyzer.results
        )
        described.examples.extend(
            analyzers_pb2.Example(
                name=example.name,
                shows=example.shows,
                params=to_struct(example.params),
                after=example.after,
            )
            for example in analyzer.examples
        )
        return analyzers_pb2.GetAnalyzerResponse(analyzer=described)

    async def release_plugin(
        self, message: analyzers_pb2.ReleasePluginRequest, call: Call
    ) -> analyzers_pb2.ReleasePluginResponse:
        """Ends a quarantine."""
        wire.check_name(message.distribution, "distribution")
        return analyzers_pb2.ReleasePluginResponse(released=self._registry.release(message.distribution))


def params_schema(registered: RegisteredAnalyzer) -> Struct:
    """JSON Schema of the analyzer's parameters; bounds beyond 2^53 are rounded, as JSON readers do."""
    return json_format.ParseDict(registered.analyzer.Params.model_json_schema(), Struct())


def _brief(registered: RegisteredAnalyzer, statuses: Sequence[ModelStatus]) -> analyzers_pb2.Analyzer:
    summary, _, description = (type(registered.analyzer).__doc__ or "").strip().partition("\n")
    requirements = registered.analyzer.requirements(None)
    return analyzers_pb2.Analyzer(
        name=registered.name,
        qualified_name=registered.qualified_name,
        distribution=registered.distribution,
        version=registered.version,
        summary=summary,
        description=description.strip(),
        requirements=analyzers_pb2.Requirements(
            model=requirements.model, features=sorted(unit.value for unit in requirements.units)
        ),
        compatibility=[
            _compatibility(requirements, status)
            for status in statuses
            if status.state is ModelState.RESIDENT and requirements.model
        ],
    )


def _compatibility(requirements: Requirements, status: ModelStatus) -> analyzers_pb2.Compatibility:
    reasons: list[str] = []
    if status.anatomy is not None:
        for unit in sorted(requirements.units - status.anatomy.units):
            lacking = [i for i, layer in enumerate(status.anatomy.layers) if unit not in layer.units]
            reasons.append(_reason(unit, lacking, status))
    return analyzers_pb2.Compatibility(model=status.name, satisfied=not reasons, reasons=reasons)


def _reason(unit: Unit, lacking: list[int], status: ModelStatus) -> str:
    first = status.anatomy.layers[lacking[0]].refused.get(unit, "") if status.anatomy else ""
    text = f"{len(lacking)} of its layers, from layer {lacking[0]} on, do not offer unit {unit.value}"
    return f"{text}: {first}" if first else text


def _plugin(record: PluginRecord) -> analyzers_pb2.Plugin:
    return analyzers_pb2.Plugin(
        name=record.name,
        distribution=record.distribution,
        version=record.version,
        status=_STATUSES[record.status],
        problem=clip(record.problem, _MAX_PROBLEM),
        analyzers=record.analyzers,
    )
