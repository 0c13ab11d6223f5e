"""Observers that raise: reported, not called again, and no other hears of it."""

from __future__ import annotations

import logging

import pytest

from dmcopy.observing import shielded


def test_what_an_observer_raises_is_reported_once() -> None:
    seen, reported = list[object](), list[BaseException]()

    def observe(event: object) -> None:
        seen.append(event)
        raise RuntimeError("no terminal")

    shield = shielded(observe, reported.append)
    for event in range(3):
        shield(event)
    assert seen == [0]
    assert [str(error) for error in reported] == ["no terminal"]


def test_by_default_it_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    shielded(lambda: 1 // 0)()
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


def test_an_interrupt_goes_through() -> None:
    def observe() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        shielded(observe)()
