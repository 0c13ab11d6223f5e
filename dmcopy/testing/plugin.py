"""The pytest plugin: block devices for tests, on the model, on this kernel, or in guests.

    pytest                      tests that use the fixtures (`dm`, `scratch_disk`, `snapshot` …) or
                                are marked `dm` run on the model: dmcopy's own engine
    pytest --dm=model,host      on each of these: test[model] and test[host]
    pytest --vm 6.1,6.12        in a guest of each kernel: test[vm-6.1] and test[vm-6.12]

What a test needs beyond that, its mark `dm` says; where it is lacking the test is skipped, and the
reason names it; with --dm-strict it is an error instead.

Tests that are marked `kernel` are for a real kernel only. `kernel(either=True)` runs on one of the
kernels, that with less to do. In a guest there are four disks of 256 MiB, `a` to `d`: the fixture
`scratch_disks` returns them, zeroed.

Every pytest run imports this module where dmcopy is installed, so it imports nothing else.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from dmcopy.testing import contents, crash_plugin, options
from dmcopy.testing.needs import MARK, Needs, lacking, missing_here

if TYPE_CHECKING:
    from dmcopy.status import Status
    from dmcopy.testing.kit import Faults, Kit, Mapped, Mirror, PowerCut, ScratchDisk, Snapshot

if "--vm-report" in sys.argv:  # it keeps the descriptor 1 of before pytest's capture
    from dmcopy.testing import reporter

__all__ = ["missing_here"]

KIT: Final = pytest.StashKey["Kit"]()
_NEEDS: Final = pytest.StashKey[Needs]()
_CHOSEN: Final = pytest.StashKey[tuple[str, ...]]()


pytest_addoption = options.add


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    options.note(early_config)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "kernel(either=False, cost=1): needs real device-mapper: runs in guests with --vm; "
        "either=True: in one of them, which has less to do, unless $DMCOPY_TEST is long",
    )
    config.addinivalue_line("markers", MARK)
    config.pluginmanager.register(crash_plugin, "dmcopy-crash")
    config.pluginmanager.register(contents, "dmcopy-contents")
    config.stash[options.MACHINES] = {}
    if config.getoption("--vm-report"):
        config.stash[_CHOSEN] = ("vm",)
        config.pluginmanager.register(reporter.Reporter(config), "dmcopy-reporter")
        if os.environ.get("DMCOPY_VM") == "1":
            from dmcopy.testing import left_in_guest

            config.pluginmanager.register(left_in_guest, "dmcopy-left")
        return
    kernels = options.kernels(config)
    config.stash[_CHOSEN] = options.places(config)
    if kernels:
        from dmcopy.testing.guests import Guests

        config.pluginmanager.register(Guests(config, kernels), "dmcopy-guests")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    marked = next(metafunc.definition.iter_markers("dm"), None) is not None
    if "dm_place" not in metafunc.fixturenames:
        if not marked:
            return
        metafunc.fixturenames.append("dm_place")
    places = metafunc.config.stash[_CHOSEN]
    if next(metafunc.definition.iter_markers("kernel"), None) is not None:
        guests = metafunc.config.getoption("--vm-report") or _guests(metafunc.config)
        places = ("vm",) if guests else ("host",)
    metafunc.parametrize("dm_place", places, indirect=True)


def _guests(config: pytest.Config) -> bool:
    return config.pluginmanager.hasplugin("dmcopy-guests")


def place_of(item: pytest.Item) -> str:
    """Return where a test with block devices runs; "" for one without."""
    callspec = getattr(item, "callspec", None)
    return "" if callspec is None else str(callspec.params.get("dm_place", ""))


def needs_of(item: pytest.Item) -> Needs:
    """Return what a test needs. Raises pytest.UsageError for a wrong mark."""
    if _NEEDS not in item.stash:
        item.stash[_NEEDS] = Needs.of(item)
    return item.stash[_NEEDS]


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:  # a mark that is wrong is told before anything runs
        if place_of(item):
            needs_of(item)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    place = place_of(item)
    if place:
        reason = lacking(needs_of(item), place)
        if reason:
            without(item.config, f"{place}: {reason}{_hint(place)}")
    elif item.get_closest_marker("kernel") is not None:
        reason = missing_here()
        if reason:
            without(item.config, f"{reason}{_hint('host')}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    if KIT not in item.stash:
        return (yield)
    from dmcopy.testing.kit.environment import LackingError
    from dmcopy.testing.kit.watchdog import watched

    keeper = item.stash[options.KEEPER]
    try:
        with watched(item.stash[KIT], options.time_limit(item)) as keeper.watch:
            return (yield)
    except LackingError as error:
        without(item.config, f"{place_of(item)}: {error}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report: pytest.TestReport = yield  # type: ignore[assignment]
    if report.failed and options.KEEPER in item.stash:
        try:
            item.stash[options.KEEPER].describe(item, report)
        except Exception as error:  # a machine in pieces: the failure itself is what counts
            report.sections.append(("the devices cannot be described", repr(error)))
    return report  # type: ignore[return-value]


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Find out on what the tests ran: for the report, and for the properties in JUnit's file."""
    config = session.config
    machines = config.stash.get(options.MACHINES, {})
    if not machines:
        return
    from dmcopy.testing import facts

    for place in [place for place, text in machines.items() if not text]:
        machines[place] = facts.model() if place == "model" else facts.machine()
    facts.note(config, machines)
    if config.getoption("--vm-report"):
        config.pluginmanager.getplugin("dmcopy-reporter").tell(machines["vm"])
    if hasattr(config, "workeroutput"):
        config.workeroutput["dmcopy"] = machines


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take from a worker of pytest-xdist on what its tests ran."""
    node.config.stash[options.MACHINES].update(getattr(node, "workeroutput", {}).get("dmcopy", {}))


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    for place, text in config.stash.get(options.MACHINES, {}).items():
        terminalreporter.write_line(f"{place}: {text}")


def without(config: pytest.Config, reason: str) -> None:
    """Skip a test for what is lacking, or fail it where that is to be an error."""
    if options.strict(config):
        pytest.fail(f"{reason} (--dm-strict)", pytrace=False)
    raise pytest.skip.Exception(reason, _use_item_location=True)


def _hint(place: str) -> str:
    return "; run it in a guest: pytest --vm 6.1" if place == "host" else ""


@pytest.fixture
def dm_place(request: pytest.FixtureRequest) -> Iterator[str]:
    """Where this test runs: `model`, `host` or `vm`."""
    from dmcopy.testing import keeping

    with keeping.nothing_left(request, request.param) as keeper:
        request.node.stash[options.KEEPER] = keeper
        yield str(request.param)


@pytest.fixture
def dm(request: pytest.FixtureRequest, dm_place: str) -> Iterator[Kit]:
    """Make a mapped device of a table: `dm("0 8192 linear … 0")`. Also all other makers' object."""
    from dmcopy.testing.kit.making import kit

    machine = request.config.pluginmanager.getplugin("dmcopy-reporter")
    needs, fixtures = needs_of(request.node), request.fixturenames
    with contextlib.ExitStack() as exits:
        made = exits.enter_context(kit(dm_place, needs, fixtures, machine, request.node.nodeid))
        request.node.stash[KIT] = made
        request.config.stash[options.MACHINES][dm_place] = ""
        keeper = request.node.stash[options.KEEPER]
        keeper.add(made)
        yield made
        keeper.check()  # before the disks go, which it may lie on
        keeper.close(exits.close)


@pytest.fixture
def scratch_disk(dm: Kit) -> Callable[..., ScratchDisk]:
    """Make a disk, all zeroes: `scratch_disk(size="64M", serial=…, block_size=512)`."""
    return dm.scratch_disk


@pytest.fixture
def troubled_disk(dm: Kit) -> Callable[..., ScratchDisk]:
    """Make a disk whose I/O can be short, late or silently wrong: `troubled_disk().trouble`."""
    return dm.troubled_disk


@pytest.fixture
def scratch_file(dm: Kit) -> Callable[..., Path]:
    """Make a file, all zeroes, in memory: `scratch_file(size="64M")`."""
    return dm.scratch_file


@pytest.fixture
def linear(dm: Kit) -> Callable[..., Mapped[Status]]:
    """Make a device that is a part of another: `linear(disk, start=0, length=…)`."""
    return dm.linear


@pytest.fixture
def striped(dm: Kit) -> Callable[..., Mapped[Status]]:
    """Make a device with stripes on others: `striped(one, two, chunk_size=128)`."""
    return dm.striped


@pytest.fixture
def snapshot(dm: Kit) -> Callable[..., Snapshot]:
    """Make a snapshot: `snapshot(origin, cow, chunk_size=8, store="P")`."""
    return dm.snapshot


@pytest.fixture
def mirror(dm: Kit) -> Callable[..., Mirror]:
    """Make a mirror: `mirror(one, two, log=…, region_size=1024)`."""
    return dm.mirror


@pytest.fixture
def stack(dm: Kit) -> Callable[..., dict[str, Mapped[Status]]]:
    """Make devices on top of each other: `stack({"low": …, "top": "0 8192 … {low}"})`."""
    return dm.stack


@pytest.fixture
def faulty(dm: Kit) -> Callable[..., Faults]:
    """Make a device over another that can be made to fail: `faulty(disk).error("100:8")`."""
    return dm.faulty


@pytest.fixture
def power_cut(request: pytest.FixtureRequest, dm: Kit) -> PowerCut:
    """Run something, and cut the power of the disks: `power_cut(program.write, disk)`."""
    from dmcopy.testing.kit.power import PowerCut

    machine = request.config.pluginmanager.getplugin("dmcopy-reporter")
    return PowerCut(dm, request.node.nodeid, machine)


@pytest.fixture
def scratch_disks() -> list[Path]:
    """Whole disks that a test may write to, all zeroes, found by their serials.

    Outside a guest $DMCOPY_DISKS names them: serials of virtio disks, separated by blanks.
    """
    serials = os.environ.get("DMCOPY_DISKS", "").split()
    if not serials:
        pytest.skip("no disks to write to: run it in a guest (pytest --vm 6.1)")
    from dmcopy.block import BlockDevice

    disks = [Path(f"/dev/disk/by-id/virtio-{serial}") for serial in serials]
    for disk in disks:
        with BlockDevice.open(disk, write=True) as device:
            # Or the host of a guest writes every byte of it, a gigabyte for each test.
            device.zero_out(0, device.sectors, unmap=True)
    return disks
