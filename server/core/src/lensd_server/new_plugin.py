"""Writes a plugin package that works as it is: a copy of the template with other names."""

import re
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

#: Where a wheel keeps the template; in a checkout it lies among the plugins.
_INSTALLED = Path(__file__).parent / "plugin_template"
_CHECKOUT = Path(__file__).parents[4] / "plugins" / "template"
#: What is copied of it, and nothing a build or an editor left beside.
_PARTS = ("pyproject.toml", "README.md", "src", "tests")
_SKIPPED = {"__pycache__", ".pytest_cache", ".ruff_cache"}
_NAME = re.compile(r"[a-z][a-z0-9]*(?:-[a-z0-9]+)*")


class NewPluginError(Exception):
    """The package was not written; the message says why."""


def new_plugin(name: str, parent: Path) -> Path:
    """Writes the distribution ``lensd-NAME`` into ``parent`` and answers its folder.

    Its analyzer answers to ``NAME``. Raises NewPluginError; nothing is ever overwritten.
    """
    name = name.removeprefix("lensd-")
    if not _NAME.fullmatch(name) or len(name) > 50:
        raise NewPluginError(
            f"{name!r} cannot name a plugin: use lower-case letters, digits and single dashes, such as my-probe"
        )
    for distribution in (f"lensd-{name}", name):
        if _is_installed(distribution):
            raise NewPluginError(f"the distribution {distribution} is installed already; choose another name")
    folder = parent / f"lensd-{name}"
    if folder.exists():
        raise NewPluginError(f"{folder} exists already; choose another name or --dir")
    replacements = _replacements(name)
    for source, relative in _files():
        target = folder / _replaced(str(relative), replacements)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(_replaced(source.read_text(encoding="utf-8"), replacements), encoding="utf-8")
    return folder


def _is_installed(distribution: str) -> bool:
    try:
        metadata.distribution(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True


def template_folder() -> Path:
    """Where the template is. Raises NewPluginError when the installation lacks it."""
    for folder in (_INSTALLED, _CHECKOUT):
        if (folder / "pyproject.toml").is_file():
            return folder
    raise NewPluginError("this installation of lensd-server lacks the plugin template: install it again")


def _files() -> Iterator[tuple[Path, Path]]:
    root = template_folder()
    for part in _PARTS:
        start = root / part
        for path in [start] if start.is_file() else sorted(start.rglob("*")):
            if path.is_file() and not _SKIPPED.intersection(path.parts) and path.suffix != ".pyc":
                yield path, path.relative_to(root)


def _replacements(name: str) -> list[tuple[str, str]]:
    camel = "".join(part.capitalize() for part in name.split("-"))
    return [
        ("lensd-template", f"lensd-{name}"),
        ("lensd_template", f"lensd_{name.replace('-', '_')}"),
        ('template = "', f'{name} = "'),
        ("TokenCount", camel),
        ("token-count", name),
    ]


def _replaced(text: str, replacements: list[tuple[str, str]]) -> str:
    for old, new in replacements:
        text = text.replace(old, new)
    return text
