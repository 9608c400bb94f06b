"""The browser of all tests of pages."""

from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A browser that a file's tests share; they are skipped where there is none."""
    from tests.support.pages import CANNOT, browser

    if CANNOT:
        pytest.skip(CANNOT)
    yield from browser()
