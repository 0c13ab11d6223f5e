"""In a guest: a test that is marked `kernel` leaves nothing either, without our fixtures.

Of what is there only what was made after the fixtures of a wider scope, before all others, counts.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dmcopy.testing import options


@pytest.fixture(autouse=True)
def _nothing_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    marked = request.node.get_closest_marker("kernel") is not None
    if not marked or "dm_place" in request.fixturenames:  # which has a check of its own
        yield
        return
    from dmcopy.testing import keeping

    with keeping.nothing_left(request, "vm") as keeper:
        request.node.stash[options.KEEPER] = keeper
        yield
