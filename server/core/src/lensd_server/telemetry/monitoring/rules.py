"""Prometheus rules as values, and the YAML that Prometheus reads."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import yaml

#: Where a runbook lies relative to what is written; ``lensd dashboards --runbook-url`` changes it.
RUNBOOK = "runbook.md"


@dataclass(frozen=True, slots=True)
class Recording:
    """An expression that is computed ahead because alerts or pages ask for it again and again."""

    record: str
    expr: str


@dataclass(frozen=True, slots=True)
class Alert:
    """What to be told of, and what to do about it.

    ``severity``: ``page`` wakes somebody, ``ticket`` can wait for the morning. ``summary`` is one
    line, with Prometheus' templates; the rest is the alert's section of the runbook.
    """

    name: str
    expr: str
    severity: Literal["page", "ticket"]
    summary: str
    #: What it means for callers.
    meaning: str
    #: What to look at and to do, in order.
    steps: tuple[str, ...]
    #: How long it must hold; Prometheus' notation.
    lasting: str = "0m"

    @property
    def anchor(self) -> str:
        """Its place in the runbook."""
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Group:
    """Rules that are evaluated together, in order."""

    name: str
    rules: tuple[Recording | Alert, ...]


def to_yaml(groups: Sequence[Group], runbook: str = RUNBOOK) -> str:
    """A rule file. ``runbook`` is where the runbook can be read: a path or a URL."""
    document = {
        "groups": [
            {"name": group.name, "rules": [_rule(rule, runbook) for rule in group.rules]} for group in groups
        ]
    }
    return dump(document)


def annotations(alert: Alert, runbook: str = RUNBOOK) -> dict[str, str]:
    """What a notification says."""
    return {
        "summary": alert.summary,
        "description": alert.meaning,
        "runbook_url": f"{runbook}#{alert.anchor}",
    }


def _rule(rule: Recording | Alert, runbook: str) -> dict[str, Any]:
    if isinstance(rule, Recording):
        return {"record": rule.record, "expr": rule.expr}
    return {
        "alert": rule.name,
        "expr": rule.expr,
        "for": rule.lasting,
        "labels": {"severity": rule.severity},
        "annotations": annotations(rule, runbook),
    }


class _Dumper(yaml.SafeDumper):
    """Strings of several lines as blocks."""


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Dumper.add_representer(str, _text)


def dump(document: Any) -> str:
    """``document`` as YAML, in its own order."""
    text: str = yaml.dump(document, Dumper=_Dumper, sort_keys=False, width=1000, allow_unicode=True)
    # A blank line between groups and rules, for whoever reads it.
    return re.sub(r"\n(?=(?:- name|  - (?:alert|record)):)", "\n\n", text)
