"""ModelService: which models are resident, and changing that."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, cast

from lensd_proto.v1 import models_pb2
from lensd_server.rpc import wire
from lensd_server.rpc.dispatch import Call
from lensd_server.rpc.gate import Gate
from lensd_server.rpc.models import to_message
from lensd_server.rpc.ports import Models


class ModelServicer:
    """Answers from the residency."""

    def __init__(self, models: Models, gate: Gate) -> None:
        self._models = models
        self._gate = gate

    async def list_models(
        self, message: models_pb2.ListModelsRequest, call: Call
    ) -> models_pb2.ListModelsResponse:
        """Every configured model."""
        statuses = sorted(self._models.statuses(), key=lambda status: status.name)
        return models_pb2.ListModelsResponse(models=[to_message(status) for status in statuses])

    async def get_model(self, message: models_pb2.GetModelRequest, call: Call) -> models_pb2.GetModelResponse:
        """One model, with its anatomy."""
        wire.check_name(message.name)
        status = self._models.status(message.name)
        return models_pb2.GetModelResponse(model=to_message(status, with_anatomy=True))

    async def load_model(
        self, message: models_pb2.LoadModelRequest, call: Call
    ) -> AsyncGenerator[models_pb2.LoadModelResponse]:
        """Makes a model resident. A caller that goes away does not stop the load."""
        wire.check_name(message.name)
        self._gate.check()
        async with aclosing(cast("AsyncGenerator[Any]", self._models.load(message.name))) as steps:
            async for step in steps:
                yield models_pb2.LoadModelResponse(
                    model=to_message(step.status),
                    stage=step.stage,
                    fraction=step.fraction,
                    detail=step.detail,
                )

    async def unload_model(
        self, message: models_pb2.UnloadModelRequest, call: Call
    ) -> models_pb2.UnloadModelResponse:
        """Frees a model's memory once its analyses are over."""
        wire.check_name(message.name)
        await self._models.unload(message.name)
        return models_pb2.UnloadModelResponse(model=to_message(self._models.status(message.name)))

    async def watch_models(
        self, message: models_pb2.WatchModelsRequest, call: Call
    ) -> AsyncGenerator[models_pb2.WatchModelsResponse]:
        """The state of every model, then each change."""
        async with aclosing(cast("AsyncGenerator[Any]", self._models.watch())) as statuses:
            async for status in statuses:
                yield models_pb2.WatchModelsResponse(model=to_message(status))
