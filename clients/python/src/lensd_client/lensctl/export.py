"""``--out``: every result as a file of its own, under a name that cannot leave the folder."""

import csv
import re
from pathlib import Path

import numpy as np

from lensd_client.errors import LensdError
from lensd_client.events import ResultEvent
from lensd_client.jsonlines import dumps, error_fields, value_object
from lensd_client.results import Table, Tensor

_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


class Export:
    """Writes results into ``folder``, which is created."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.written: list[Path] = []
        folder.mkdir(parents=True, exist_ok=True)

    def write(self, event: ResultEvent) -> Path:
        """Tables as CSV with empty cells for missing values, tensors as .npy, the rest as JSON."""
        value = event.value
        if isinstance(value, Table):
            path = self._path(event, ".csv")
            with path.open("w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file)
                writer.writerow(value.columns)
                writer.writerows(row.values() for row in value.rows())
        elif isinstance(value, Tensor):
            path = self._path(event, ".npy")
            np.save(path, value.array, allow_pickle=False)
        elif isinstance(value, LensdError):
            path = self._path(event, ".error.json")
            path.write_text(dumps(error_fields(value), indent=2) + "\n", encoding="utf-8")
        else:
            path = self._path(event, ".json")
            (content,) = value_object(value).values()
            path.write_text(dumps(content, indent=2) + "\n", encoding="utf-8")
        self.written.append(path)
        return path

    def _path(self, event: ResultEvent, suffix: str) -> Path:
        name = _safe(event.name) + (f".{_safe(event.item)}" if event.item else "")
        path = self.folder / f"{name}{suffix}"
        count = 1
        while path in self.written:  # two items may become the same safe name
            count += 1
            path = self.folder / f"{name}-{count}{suffix}"
        return path


def _safe(text: str) -> str:
    return _UNSAFE.sub("_", text).lstrip(".")[:80] or "_"
