"""The reader of documentation blocks itself: it must notice wrong output."""

from pathlib import Path

import pytest

from tests.docs.blocks import json_mismatch, mismatch, read_blocks


def test_a_block_is_read_with_the_output_that_follows_it(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("Say:\n\n```python\nprint(1)\n```\n\n```text\n1\n```\n\nThen\n\n```sh\nls\n```\n")
    first, second = read_blocks(page)
    assert (first.language, first.text, first.output, first.line) == ("python", "print(1)\n", "1\n", 3)
    assert (second.language, second.output) == ("sh", None)


@pytest.mark.parametrize(
    ("shown", "real"),
    [
        ("logit 17.371", "logit 17.3712"),
        ("a  b\n", "a b"),
        ("first\n...\nlast", "first\n1\n2\nlast"),
        ("first\n...", "first\n2"),
        ("2e-6", "7e-6"),
    ],
)
def test_output_may_differ_in_what_does_not_matter(shown: str, real: str) -> None:
    assert mismatch(shown, real) is None


@pytest.mark.parametrize(
    ("shown", "real"),
    [
        ("logit 17.371", "logit 17.471"),
        ("logit 17.371", "logits 17.371"),
        ("one", "one\ntwo"),
        ("one\ntwo", "one"),
        ("first\n...\nlast", "first\n1\n2"),
        ("-1.5", "1.5"),
    ],
)
def test_output_that_differs_is_noticed(shown: str, real: str) -> None:
    assert mismatch(shown, real) is not None


def test_shown_json_may_leave_members_out_but_not_invent_them() -> None:
    real = '{"a": 1.00001, "b": {"c": "x", "d": true}}\n{"e": [1, 2]}'
    assert json_mismatch('{"b": {"c": "x"}, "a": 1}', real) is None
    assert json_mismatch('{"e": [1, 2]}', real) is None
    for wrong in ('{"a": 2}', '{"b": {"c": "y"}}', '{"e": [1]}', '{"f": 1}', '{"b": {"d": 1}}'):
        assert json_mismatch(wrong, real) is not None
