"""What loads ask of the devices of a machine."""

from typing import Protocol

from lensd_server.engine.device import Device


class OffersDevices(Protocol):
    """The devices of this machine."""

    def candidates(self, wanted: str) -> tuple[str, ...]:
        """Names of the devices that a model configured for ``wanted`` may be on. Raises LoadFailed."""
        ...

    def open(self, name: str) -> Device:
        """A device to put one model on."""
        ...

    def free_bytes(self, device: str) -> int | None:
        """See :class:`lensd_server.engine.models.room.Memory`."""
        ...

    def used_bytes(self, device: str) -> int:
        """Bytes that this process has on the device."""
        ...
