"""What authors may import is what ``__all__`` says."""

import inspect

import lensd_api
from lensd_api import errors


def test_all_names_are_importable_and_nothing_else_is_public() -> None:
    public = {
        name
        for name, value in vars(lensd_api).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    }
    assert public == set(lensd_api.__all__)
    assert list(lensd_api.__all__) == sorted(lensd_api.__all__)


def test_every_error_is_public_and_has_a_status_and_reason_of_its_own() -> None:
    tree = [
        cls
        for cls in vars(errors).values()
        if inspect.isclass(cls) and issubclass(cls, errors.LensdError) and cls is not errors.LensdError
    ]
    assert {cls.__name__ for cls in tree} <= set(lensd_api.__all__)
    reasons = [cls.reason for cls in tree]
    assert len(reasons) == len(set(reasons))
    assert all(reason == reason.upper() for reason in reasons)


def test_the_tree_in_the_docstring_is_complete() -> None:
    drawn = errors.__doc__ or ""
    for name, cls in vars(errors).items():
        if inspect.isclass(cls) and issubclass(cls, errors.LensdError):
            assert name in drawn, f"{name} is missing from the tree"
