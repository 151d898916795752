"""Records: free-form values by name."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lensd_client.results import html


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Record(Mapping[str, Any]):
    """A mapping of plain Python values: numbers, text, truth values, None, lists, mappings.

    The wire knows only doubles: an integral number comes back as an ``int``.
    """

    values_by_name: Mapping[str, Any]
    name: str = ""
    title: str = ""
    item: str = ""

    def __getitem__(self, key: str) -> Any:
        try:
            return self.values_by_name[key]
        except KeyError:
            raise KeyError(f"no {key!r}; there are {', '.join(self.values_by_name)}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self.values_by_name)

    def __len__(self) -> int:
        return len(self.values_by_name)

    def __contains__(self, key: object) -> bool:
        return key in self.values_by_name

    def to_dict(self) -> dict[str, Any]:
        """The same as a dictionary of its own."""
        return dict(self.values_by_name)

    def __repr__(self) -> str:
        return f"<Record {self.name!r}: {dict(self.values_by_name)!r}>"

    def _repr_html_(self) -> str:
        return html.table(["name", "value"], list(self.items()), caption=self.title or self.name)
