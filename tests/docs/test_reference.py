"""Every hook, setting and metric there is, is in the documentation, with its default or meaning.

A row that is missing is printed as it should be, ready to be pasted.
"""

from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from lensd_api import hookspecs
from lensd_server.settings import ModelSettings, Settings
from lensd_server.telemetry.definitions import DEFINITIONS

ROOT = Path(__file__).parents[2]
OPERATORS = (ROOT / "server" / "core" / "README.md").read_text()
AUTHORS = (ROOT / "server" / "api" / "README.md").read_text()


def _settings() -> Iterator[tuple[str, FieldInfo]]:
    for section, field in Settings.model_fields.items():
        model = ModelSettings if section == "models" else field.annotation
        assert isinstance(model, type)
        assert issubclass(model, BaseModel)
        prefix = "models.NAME" if section == "models" else section
        for name, setting in model.model_fields.items():
            yield f"{prefix}.{name}", setting


def _default(setting: FieldInfo) -> str:
    if setting.is_required():
        return "required"
    match setting.get_default(call_default_factory=True):
        case None:
            return "none"
        case bool() as switch:
            return f"`{str(switch).lower()}`"
        case Path():
            return ""  # the user's own folders
        case default:
            return f"`{default}`"


def test_every_setting_is_documented_with_its_default() -> None:
    missing: list[str] = []
    names = 0
    for name, setting in _settings():
        names += 1
        shown = _default(setting)
        rows = [line for line in OPERATORS.splitlines() if line.startswith(f"| `{name}` | {shown}")]
        if not rows or not rows[0].split("|")[3].strip():
            missing.append(f"| `{name}` | {shown} | what it does |")
    assert names > 15, "the walk lost most of the settings"
    assert missing == [], "\n".join(["add to server/core/README.md:", *missing])


def test_no_documented_setting_has_gone() -> None:
    known = {name for name, _ in _settings()}
    sections = tuple(f"{section}." for section in Settings.model_fields)
    rows = [line.split("`")[1] for line in OPERATORS.splitlines() if line.startswith("| `")]
    assert [row for row in rows if row.startswith(sections) and row not in known] == []


def test_every_metric_is_documented_as_it_is_defined() -> None:
    expected = [f"| `{d.name}` | {d.kind} | {', '.join(d.labels)} | {d.help} |" for d in DEFINITIONS]
    missing = [row for row in expected if row not in OPERATORS]
    assert missing == [], "\n".join(["add to server/core/README.md:", *missing])
    rows = [line for line in OPERATORS.splitlines() if line.startswith(("| `lensd_", "| `process_"))]
    assert [row for row in rows if row not in expected] == [], "documented, not defined"


def test_every_hook_is_documented() -> None:
    hooks = [name for name in vars(hookspecs) if name.startswith("lensd_")]
    assert len(hooks) >= 5
    assert [name for name in hooks if f"`{name}`" not in AUTHORS] == []
