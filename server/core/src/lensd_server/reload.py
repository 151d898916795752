"""What of a changed configuration a running daemon can take over, and what needs a restart.

Pure: two settings in, the settings in force and two lists out. A key not named here needs a restart.
"""

from dataclasses import dataclass
from typing import Any

from lensd_server.settings import Settings

#: Keys that are read anew at each use, so that changing them is safe at any time.
LIVE = frozenset(
    {
        "server.grace_s",
        "server.log_level",
        "limits.max_analyses",
        "limits.max_analyses_per_stream",
        "limits.max_admitted_tokens",
        "limits.max_admitted_bytes",
        "limits.max_timeout_s",
        "auth.certificates",
        "quota.max_analyses",
        "quota.rows_per_minute",
        "quota.tokens_per_minute",
        "quota.bytes_per_minute",
        "quota.callers",
    }
)


@dataclass(frozen=True, slots=True)
class Change:
    """``settings`` are in force from now on; ``applied`` and ``restart`` are dotted keys."""

    settings: Settings
    applied: tuple[str, ...]
    restart: tuple[str, ...]


def change(old: Settings, new: Settings) -> Change:
    """``old`` with what of ``new`` can be had without a restart."""
    changed = [
        key for key in sorted({*_flat(old), *_flat(new)}) if _flat(old).get(key) != _flat(new).get(key)
    ]
    applied = tuple(key for key in changed if _is_live(key, old, new))
    sections: dict[str, dict[str, Any]] = {}
    for key in applied:
        section, _, name = key.partition(".")
        sections.setdefault(section, {})[name] = _flat(new)[key]
    updates = {name: getattr(old, name).model_copy(update=values) for name, values in sections.items()}
    return Change(
        settings=old.model_copy(update=updates),
        applied=applied,
        restart=tuple(key for key in changed if key not in applied),
    )


def _is_live(key: str, old: Settings, new: Settings) -> bool:
    if key == "auth.certificates":
        # From none to some, or back, changes whether callers have to say who they are.
        return bool(old.auth.certificates) and bool(new.auth.certificates)
    return key in LIVE


def _flat(settings: Settings) -> dict[str, Any]:
    """Dotted keys; a whole model under ``models.NAME``."""
    sections = {name: getattr(settings, name) for name in type(settings).model_fields}
    return {
        f"{section}.{key}": value
        for section, values in sections.items()
        for key, value in (values if isinstance(values, dict) else dict(values)).items()
    }
