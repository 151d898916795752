"""Rewards for models that simulate shoppers."""

from lensd_api import Analyzer, hookimpl
from lensd_shop_r1.analyzer import ShopR1
from lensd_shop_r1.params import Message, Reference, Rollout, ShopR1Params
from lensd_shop_r1.scoring import NotFinite
from lensd_shop_r1.sessions import Session, read_sessions
from lensd_shop_r1.spans import TokensNotAligned

__version__ = "0.1.0"

__all__ = [
    "Message",
    "NotFinite",
    "Reference",
    "Rollout",
    "Session",
    "ShopR1",
    "ShopR1Params",
    "TokensNotAligned",
    "lensd_analyzers",
    "read_sessions",
]


@hookimpl
def lensd_analyzers() -> list[Analyzer]:
    """The analyzer ``shop-r1``."""
    return [ShopR1()]
