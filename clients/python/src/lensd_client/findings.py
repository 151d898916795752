"""What an analysis has found so far: results by name and item, warnings, progress, usage."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from lensd_client.errors import LensdError
from lensd_client.events import Accepted, Completed, Event, Progress, ResultEvent, Warned
from lensd_client.results import Value


@dataclass(frozen=True, slots=True)
class Item:
    """One item of a request and its results by name; ``errors`` holds what failed of it."""

    item: str
    results: Mapping[str, Value]
    errors: Mapping[str, LensdError] = field(default_factory=dict[str, LensdError])

    @property
    def error(self) -> LensdError | None:
        """The first failure, if any."""
        return next(iter(self.errors.values()), None)

    def __getitem__(self, name: str) -> Value:
        """The result called ``name``; raises its error if that is what it is."""
        if name in self.results:
            return self.results[name]
        if self.error is not None:
            raise self.errors.get(name, self.error)
        raise KeyError(f"no result {name!r}; there are {', '.join(self.results) or 'none'}")


class Findings:
    """Collects the events of one analysis. Nothing here waits for anything."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], Value | LensdError] = {}
        self._accepted: Accepted | None = None
        self._progress: Progress | None = None
        self._completed: Completed | None = None
        self._warnings: list[Warned] = []

    def take(self, event: Event) -> None:
        """Adds one event."""
        match event:
            case ResultEvent():
                self._found[event.name, event.item] = event.value
            case Warned():
                self._warnings.append(event)
            case Progress():
                self._progress = event
            case Accepted():
                self._accepted = event
            case Completed():
                self._completed = event
            case _:
                pass  # parts are joined before they are kept

    @property
    def accepted(self) -> Accepted | None:
        """What the server said when it took the analysis on."""
        return self._accepted

    @property
    def progress(self) -> Progress | None:
        """The newest progress."""
        return self._progress

    @property
    def completed(self) -> Completed | None:
        """Usage and model revision, once the analysis is done."""
        return self._completed

    @property
    def warnings(self) -> tuple[Warned, ...]:
        """What to know about the results."""
        return tuple(self._warnings)

    def values(self) -> list[Value]:
        """Every result so far, in order of arrival, failed items left out."""
        return [value for value in self._found.values() if not isinstance(value, LensdError)]

    def by_item(self) -> Iterator[Item]:
        """Every item so far in order of arrival, with its results and errors."""
        for item in dict.fromkeys(item for _, item in self._found):
            mine = {name: value for (name, of), value in self._found.items() if of == item}
            yield Item(
                item,
                {name: value for name, value in mine.items() if not isinstance(value, LensdError)},
                {name: value for name, value in mine.items() if isinstance(value, LensdError)},
            )

    def pick(self, name: str | tuple[str, str]) -> Value:
        """The result called ``name``, or of (name, item) where several items have one.

        Raises the item's error if it failed, KeyError when there is no such result or the
        name alone does not decide.
        """
        if isinstance(name, tuple):
            return self._raise_or_return(name)
        keys = [key for key in self._found if key[0] == name]
        if not keys:
            self._raise_failure_of_all()
            there = dict.fromkeys(found for found, _ in self._found)
            raise KeyError(f"no result {name!r}; there are {', '.join(there) or 'none'}")
        if len(keys) > 1:
            items = ", ".join(repr(item) for _, item in keys[:5]) + (", …" if len(keys) > 5 else "")
            raise KeyError(f"{name!r} has several items ({items}): use items(), or [{name!r}, item]")
        return self._raise_or_return(keys[0])

    def _raise_or_return(self, key: tuple[str, str]) -> Value:
        try:
            value = self._found[key]
        except KeyError:
            raise KeyError(f"no result {key[0]!r} of item {key[1]!r}") from None
        if isinstance(value, LensdError):
            raise value
        return value

    def _raise_failure_of_all(self) -> None:
        values = list(self._found.values())
        if values and isinstance(values[0], LensdError) and len({item for _, item in self._found}) == 1:
            raise values[0]
