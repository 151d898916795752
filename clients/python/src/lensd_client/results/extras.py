"""Optional libraries: imported when asked for, missed with the command that installs them."""

import importlib
from typing import Any


def require(module: str, extra: str) -> Any:
    """Imports ``module``. Raises ImportError naming the pip command when it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"this needs {module.partition('.')[0]}: pip install 'lensd-client[{extra}]'"
        ) from error
