"""Captures of rows that are read in several steps, kept on the device until the last of them. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lensd_api import Site
from lensd_server.engine.upload import upload


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """Captures at some of the positions a row asked for: ``asked`` are their indices among all of them.

    ``values`` have one entry a position along their first axis. Rows that share a step share its piece.
    """

    asked: tuple[int, ...]
    values: Mapping[Site, Tensor]

    @property
    def nbytes(self) -> int:
        """Memory it takes."""
        return sum(tensor.nbytes for tensor in self.values.values())


def cut(values: Mapping[Site, Tensor], lengths: Sequence[int]) -> list[dict[Site, Tensor]]:
    """Stacked captures, one part for each of ``lengths`` positions; views."""
    parts = {site: tensor.split(list(lengths)) for site, tensor in values.items()}
    return [{site: parts[site][i] for site in values} for i in range(len(lengths))]


def join(pieces: Sequence[Piece]) -> dict[Site, Tensor]:
    """All captures of a row, in the order in which it asked for their positions."""
    if not pieces[0].values:
        return {}
    order = [place for piece in pieces for place in piece.asked]
    device = next(iter(pieces[0].values.values())).device
    back = upload(sorted(range(len(order)), key=order.__getitem__), device, torch.long)
    return {site: torch.cat([piece.values[site] for piece in pieces])[back] for site in pieces[0].values}


def stack_rows(rows: Sequence[Mapping[Site, Tensor]]) -> dict[Site, Tensor]:
    """Captures of several rows one after another."""
    return {site: torch.cat([row[site] for row in rows]) for site in rows[0]}
