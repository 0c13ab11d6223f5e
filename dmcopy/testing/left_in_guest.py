"""In a guest: a test that is marked `kernel` leaves nothing either, without our fixtures.

What fixtures of a wider scope make is not the test's: those that are set up before all others, and
those that another asks for by name meanwhile.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from dmcopy.testing import options

if TYPE_CHECKING:
    from dmcopy.testing.keeping import Keeper

_keepers: list[Keeper] = []


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any]) -> Generator[None, object, object]:
    if fixturedef.scope == "function" or not _keepers:
        return (yield)
    with _keepers[-1].not_the_tests():
        return (yield)


@pytest.fixture(autouse=True)
def _nothing_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    marked = request.node.get_closest_marker("kernel") is not None
    if not marked or "dm_place" in request.fixturenames:  # which has a check of its own
        yield
        return
    from dmcopy.testing import keeping

    with keeping.nothing_left(request, "vm") as keeper:
        request.node.stash[options.KEEPER] = keeper
        _keepers.append(keeper)
        try:
            yield
        finally:
            _keepers.remove(keeper)
