"""Health that tells the truth: overall, per service and per model."""

from grpc_health.v1 import health_pb2
from grpc_health.v1._async import HealthServicer

from lensd_server.engine.events import ModelState, ModelStatus
from lensd_server.rpc.listeners import SERVICES

#: Prefix under which a model's health is asked for.
MODEL_PREFIX = "lensd.v1.Model/"

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Health:
    """What grpc.health.v1 answers, on both listeners."""

    def __init__(self) -> None:
        self.servicer = HealthServicer()

    async def starting(self) -> None:
        """Nothing is served until the preloaded models are resident."""
        await self._set_services(_NOT_SERVING)

    async def ready(self) -> None:
        """Every service is served."""
        await self._set_services(_SERVING)

    async def overall(self, serving: bool) -> None:
        """What a probe that names no service is told."""
        await self.servicer.set("", _SERVING if serving else _NOT_SERVING)

    async def model(self, status: ModelStatus) -> None:
        """A model serves while it is resident; a cold one is loaded when it is asked for."""
        serving = status.state is ModelState.RESIDENT
        await self.servicer.set(f"{MODEL_PREFIX}{status.name}", _SERVING if serving else _NOT_SERVING)

    async def draining(self) -> None:
        """Nothing is served from now on, whatever else is reported."""
        await self.servicer.enter_graceful_shutdown()

    async def _set_services(self, serving: health_pb2.HealthCheckResponse.ServingStatus) -> None:
        for name in ("", *(service.full_name for service in SERVICES)):
            await self.servicer.set(name, serving)
