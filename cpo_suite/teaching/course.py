"""Checks of the notebooks' exercises: they report the result and never stop the notebook."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

results: dict[str, bool] = {}
"""Exercises checked in this process, and whether the last attempt solved them."""


@contextmanager
def exercise(name: str) -> Iterator[None]:
    """Runs the check of the exercise `name`, such as "00.1", and reports the result.

    What the check raises is shown and goes no further, so that a notebook whose exercises are
    still to be done runs from top to bottom. The result also stands in `results`.
    """
    results[name] = False
    try:
        yield
    except NotImplementedError:
        print(f"Exercise {name}: not yet. Write the cell above, run it, then run this one again.")
    except Exception as error:
        message = str(error).strip()
        if not message and isinstance(error, AssertionError):
            message = traceback.extract_tb(error.__traceback__)[-1].line or ""  # as it is written
        print(f"Exercise {name}: not yet: {type(error).__name__}: {message}".removesuffix(": "))
    else:
        results[name] = True
        print(f"Exercise {name}: solved.")
