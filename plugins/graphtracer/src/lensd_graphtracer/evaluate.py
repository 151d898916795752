"""``python -m lensd_graphtracer.evaluate FOLDER``: how good the answers are, beside trivial rules and ablations.

FOLDER holds labelled Who&When files, one folder a subset. With ``--target`` the logs, without
their labels, also go through a running server, with ``--model`` once more with information flow.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lensd_graphtracer import score_table
from lensd_graphtracer.benchmark import Case, read_cases
from lensd_graphtracer.experiments import METHODS, Method, as_shipped, trained, trivial
from lensd_graphtracer.flow import Flow
from lensd_graphtracer.rules import Guess
from lensd_graphtracer.scoring import judge
from lensd_graphtracer.served import Answer, Server, ServerFailed


def evaluate(cases: Sequence[Case], server: Server | None, flow_settings: Mapping[str, Any]) -> list[Method]:
    """Every method on every case. Raises ServerFailed."""
    methods = trivial(cases)
    methods += [method(cases) for method in METHODS]
    methods += [as_shipped(cases), as_shipped(cases, with_answer=True)]
    if server is None:
        return methods
    structural, _ = ask_server(cases, Server(server.target), "served, structure only", {})
    methods.append(structural)
    if server.model:
        settings = {"use_model": True, **flow_settings}
        served, flows = ask_server(cases, server, f"served, with {server.model}", settings)
        methods.append(served)
        methods.append(trained(f"graph, {server.model} and ranker", cases, flows=flows))
    return methods


def ask_server(
    cases: Sequence[Case], server: Server, name: str, settings: Mapping[str, Any]
) -> tuple[Method, dict[str, Sequence[Flow]]]:
    """Sends every log, one after another; also the flows that came back, by subset and name."""
    answers: list[Answer] = []
    for done, case in enumerate(cases, 1):
        answers.append(server.ask(case.log, settings))
        print(f"\r{name}: {done} of {len(cases)}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    method = Method(
        name,
        "served",
        tuple(judge(a.agent, a.step, c.agent, c.step) for a, c in zip(answers, cases, strict=True)),
        tuple(Guess(a.agent, a.step) for a in answers),
        sum(a.seconds for a in answers),
        sum(a.tokens for a in answers),
        confidences=tuple(a.confidence for a in answers),
    )
    return method, {f"{c.subset}/{c.name}": a.flows for a, c in zip(answers, cases, strict=True)}


def main() -> int:
    """Reads the command line; the exit status is 1 when there is nothing to evaluate or the server fails."""
    parser = argparse.ArgumentParser(prog="python -m lensd_graphtracer.evaluate", description=__doc__)
    parser.add_argument("folder", type=Path, help="labelled Who&When files, one folder a subset")
    parser.add_argument("--target", metavar="HOST:PORT", help="also ask the server there, through lensctl")
    parser.add_argument(
        "--model", default="", help="with --target: also measure information flow with this model"
    )
    parser.add_argument("--window-tokens", type=int, default=512)
    parser.add_argument("--step-tokens", type=int, default=96)
    parser.add_argument("--output-tokens", type=int, default=96)
    parser.add_argument("--max-rows", type=int, default=512)
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="also write every number and prediction there"
    )
    asked = parser.parse_args()
    if asked.model and not asked.target:
        parser.error("--model needs --target")
    flow_settings = {
        name: getattr(asked, name) for name in ("window_tokens", "step_tokens", "output_tokens", "max_rows")
    }
    try:
        cases = read_cases(asked.folder)
        server = Server(asked.target, asked.model) if asked.target else None
        methods = evaluate(cases, server, flow_settings)
    except (OSError, ValueError, ServerFailed) as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return 1
    print(score_table.markdown(cases, methods))
    if asked.json:
        asked.json.write_text(score_table.as_json(cases, methods), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
