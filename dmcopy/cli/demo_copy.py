"""The demo's first part: one source copied to three destinations, two of the disks broken."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Self

from dmcopy.block import BlockDevice
from dmcopy.cli.progress import make_renderer
from dmcopy.cli.story import Story
from dmcopy.io import IoRegion, Op, Reactor
from dmcopy.kcopyd import Client, CopyJob, Flag
from dmcopy.ranges import RangeSet
from dmcopy.testing.faults import FaultyBackend
from dmcopy.transfer import Destination, Transfer, TransferPlan, events
from dmcopy.transfer.destination import errno_name
from dmcopy.transfer.plan import block_of
from dmcopy.transfer.verify import Verified, Verifier
from dmcopy.units import PAGE_SIZE, SECTOR_SHIFT, format_bytes, format_sectors

PAGES: Final = 64
SECTORS: Final = 256 << 11
"""256 MiB; one MiB in four holds data and the rest is a hole."""
BAD_SOURCE: Final = (245_860, 3)
BAD_DEST: Final = (328_480, 8)
"""Where the faults are: (sector, count), both where there is data."""
_DEADLINE: Final = 120.0


def tell(story: Story, folder: Path, progress: str) -> None:
    with Stage(story, folder, progress) as stage:
        _copy(stage)
        stage.break_disks()
        _copy_with_errors(stage)
        _skip_errors(stage)


class Stage:
    """The files, the reactor and the client that every act uses."""

    def __init__(self, story: Story, folder: Path, progress: str) -> None:
        self.story = story
        self.progress = progress
        paths = [folder / "source.img", *(folder / f"dest{n}.img" for n in (1, 2, 3))]
        _make_source(paths[0])
        for path in paths[1:]:
            with open(path, "wb") as file:
                file.truncate(SECTORS << SECTOR_SHIFT)
        self.devices = [BlockDevice.open(path, write=path != paths[0]) for path in paths]
        self.reactor = Reactor()
        self.faulty = FaultyBackend.install(self.reactor)
        self.client = Client(PAGES, reactor=self.reactor)
        self.source, *self.dests = (IoRegion(device, 0, SECTORS) for device in self.devices)
        self.plan = TransferPlan(
            self.source, tuple(self.dests), self.client.sub_job_sectors, sparse=True
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.destroy()
        self.reactor.close()
        for device in self.devices:
            device.close()

    def break_disks(self) -> None:
        """Let some sectors of the source and of the second destination fail from now on."""
        self.faulty.fail(self.source.device, Op.READ, *BAD_SOURCE)
        self.faulty.fail(self.dests[1].device, Op.WRITE, *BAD_DEST)

    def follow(self, job: CopyJob) -> float:
        """Wait for a job, showing how far it is; return the seconds that it took."""
        renderer = make_renderer(self.progress, at_once=True)
        began = time.monotonic()

        def tell() -> None:
            written = job.progress()
            passed = time.monotonic() - began
            renderer.show(events.Progress("copy", min(written), SECTORS, written, passed))

        def tick() -> None:
            if not job.done:
                tell()
                self.reactor.call_later(0.05, tick)

        tick()
        job.wait(_DEADLINE)
        tell()
        renderer.close()
        return time.monotonic() - began

    def verify(self, written: Sequence[RangeSet]) -> Verified:
        """Read back what was written and compare it with the source."""
        dests = [Destination(region) for region in self.dests]
        for dest, ranges in zip(dests, written, strict=True):
            dest.region.device.flush()
            dest.written = ranges
        renderer = make_renderer(self.progress, at_once=True)
        verifier = Verifier(self.reactor, self.plan, dests, pages=1024, observer=renderer.show)
        try:
            return verifier.run()
        finally:
            renderer.close()


def _copy(stage: Stage) -> None:
    story, client = stage.story, stage.client
    story.title(f"One source, three destinations, one client with {PAGES} pages")
    story.say(
        f"{format_bytes(SECTORS << SECTOR_SHIFT)} are copied through {PAGES} pages "
        f"({format_bytes(PAGES * PAGE_SIZE)}) of memory, read once and written three times."
    )
    job = client.copy(stage.source, stage.dests, Flag.SPARSE)
    seconds = stage.follow(job)
    _show(stage, job)
    story.say(f"{format_bytes(int((SECTORS << SECTOR_SHIFT) / seconds))}/s on {stage.reactor}")
    story.claim("no error: read_err is 0, write_err is 0", job.ok)
    verified = stage.verify([job.written(index) for index in range(3)])
    for index in range(3):
        story.claim(f"dest{index + 1} was read back and is the source", verified.is_good(index))
    statistics = client.statistics()
    story.claim("every page is back in the pool", statistics.pages_free == PAGES)
    story.claim("the source was read exactly once", statistics.sectors_read == SECTORS)


def _copy_with_errors(stage: Stage) -> None:
    story = stage.story
    story.title("The same with a read error in the source and a write error in dest2")
    story.say(f"The source cannot read {_at(*BAD_SOURCE)}, dest2 cannot write {_at(*BAD_DEST)}.")
    job = stage.client.copy(stage.source, stage.dests, Flag.IGNORE_ERROR | Flag.SPARSE)
    stage.follow(job)
    _show(stage, job)
    story.claim("read_err is 1", job.read_err == 1)
    story.claim("write_err is 0b010: dest2 failed, and nothing else", job.write_err == 0b010)
    lost = [failure.region for failure in job.read_failures]
    story.claim("the one failed read holds the bad sectors", _hold(lost, *BAD_SOURCE))
    failed = [failure.region for _, failure in job.write_failures]
    story.claim("the one failed write holds the bad sectors", _hold(failed, *BAD_DEST))
    written = [job.written(index) for index in range(3)]
    for ranges in written:
        for region in lost:
            ranges.remove(region.sector, region.end)
    verified = stage.verify(written)
    for index in (0, 2):
        story.claim(
            f"dest{index + 1}, a good destination, is the source wherever that can be read",
            verified.is_good(index),
        )
    story.claim("dest2 is good, too, wherever it can be written", verified.is_good(1))


def _skip_errors(stage: Stage) -> None:
    story = stage.story
    story.title("What 'dmcopy copy --on-error skip' makes of it: only the bad blocks are left out")
    renderer = make_renderer(stage.progress, at_once=True)

    def show(event: events.TransferEvent) -> None:
        if isinstance(event, events.Progress):
            renderer.show(event)

    transfer = Transfer(stage.client, stage.plan, on_error="skip", observer=show)
    transfer.run()
    renderer.close()
    block = block_of(stage.plan.regions)
    unread = [(bad.start, bad.end - bad.start) for bad in transfer.bad]
    bad = _blocks(*BAD_SOURCE, block)
    story.claim(f"nothing was left out of the source but {_at(*bad)}", unread == [bad])
    unwritten = [(bad.start, bad.end - bad.start) for bad in transfer.dests[1].failures]
    bad = _blocks(*BAD_DEST, block)
    story.claim(f"dest2 lacks nothing else but {_at(*bad)}", unwritten == [bad])
    verified = stage.verify([dest.written for dest in transfer.dests])
    for index in (0, 2):
        story.claim(
            f"dest{index + 1} has every block that can be read",
            transfer.dests[index].ok and verified.is_good(index),
        )


def _make_source(path: Path) -> None:
    """Write a sparse file of random data and holes."""
    rng = random.Random(0)
    with open(path, "wb") as file:
        file.truncate(SECTORS << SECTOR_SHIFT)
        for start in range(0, SECTORS << SECTOR_SHIFT, 4 << 20):
            file.seek(start)
            file.write(rng.randbytes(1 << 20))


def _show(stage: Stage, job: CopyJob) -> None:
    rows = []
    for index, sectors in enumerate(job.progress()):
        failures = [failure for at, failure in job.write_failures if at == index]
        failed = ", ".join(
            f"{_at(region.sector, region.count)} {errno_name(error)}" for region, error in failures
        )
        rows.append([f"dest{index + 1}", format_sectors(sectors), failed or "none"])
    stage.story.table(["DESTINATION", "WRITTEN", "FAILED"], rows)
    stage.story.say(f"read_err={job.read_err} write_err={job.write_err:#05b}")


def _hold(regions: Sequence[IoRegion], sector: int, count: int) -> bool:
    if len(regions) != 1:
        return False
    return regions[0].sector <= sector and sector + count <= regions[0].end


def _blocks(sector: int, count: int, block: int) -> tuple[int, int]:
    """Return the sectors (first, count) of the blocks that some sectors are in."""
    start = sector // block * block
    return start, -(-(sector + count) // block) * block - start


def _at(sector: int, count: int) -> str:
    return f"{count} sectors from {sector}"
