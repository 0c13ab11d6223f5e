"""nbdkit before what we serve: another server asks ours, and its filters judge the answers."""

from __future__ import annotations

import os
import shlex
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dmcopy.cli.main import main
from tests.loop.export.strangers import run, served_pair
from tests.unit.export.serving import DEADLINE, Serving
from tests.waiting import until

MIB = 1 << 20


def filtered(uri: str, filters: str, command: str, *words: object, code: int = 0) -> str:
    """Run a command of the shell's that finds the export behind nbdkit's filters as $uri."""
    named = [f"--filter={name}" for name in filters.split()]
    return run("nbdkit", "-U", "-", *named, "nbd", uri, *words, "--run", command, code=code)


def script(text: str) -> str:
    """Return the command that runs a script of libnbd's shell on $uri."""
    return f'nbdsh -u "$uri" -c {shlex.quote(text)}'


def disk_server(folder: Path, *words: object) -> Serving:
    """Serve a disk whose power can be cut."""
    return Serving(folder / "disk", *words, "--socket", folder / "socket", noun="disk serve")


def test_it_compares_all_that_a_snapshot_holds(tmp_path: Path) -> None:
    """Its checkwrite takes no write that would change a byte."""
    image = tmp_path / "image"
    with served_pair(tmp_path) as pair:
        image.write_bytes(pair.before)
        run("qemu-io", "-f", "raw", "-c", "write -P 5 1M 1M", "-c", "write -z 2M 1M", pair.live)
        filtered(pair.then, "checkwrite", f'nbdcopy {image} "$uri"')
        filtered(pair.live, "checkwrite", f'nbdcopy {image} "$uri"', code=1)


ANY_BYTE = """
import random
rng = random.Random(7)
model = bytearray(h.get_size())
h.set_strict_mode(0)
for _ in range(200):
    at = rng.randrange(len(model))
    length = min(rng.randrange(1, 3000), len(model) - at)
    data = rng.randbytes(length)
    if rng.random() < 0.3:
        data = bytes(length)
        h.zero(length, at)
    else:
        h.pwrite(data, at)
    model[at : at + length] = data
assert h.pread(len(model), 0) == model
"""


def test_bytes_and_long_requests_become_whole_blocks_and_short_ones(tmp_path: Path) -> None:
    """Its blocksize filter goes by our least block and our longest request."""
    with disk_server(tmp_path, "--size", "40M") as serving:
        filtered(*serving.found, "blocksize", script(ANY_BYTE))


def test_holes_are_not_read_and_zeroes_make_them(tmp_path: Path) -> None:
    disk, counts = tmp_path / "disk", tmp_path / "counts"
    with open(disk, "wb") as file:
        file.truncate(64 * MIB)
        for place in (3, 40):
            file.seek(place * MIB)
            file.write(os.urandom(MIB))

    def read_of(filters: str, command: str) -> str:
        """How much was asked of us, as nbdkit counts it."""
        filtered(uri, filters, command, f"statsfile={counts}")
        (line,) = [one for one in counts.read_text().splitlines() if one.startswith("read: ")]
        return line.split(", ")[2]

    with Serving(disk, "--via", "nbd", "--socket", tmp_path / "socket") as serving:
        (uri,) = serving.found
        copy = f'nbdcopy "$uri" {tmp_path}/copy && cmp {tmp_path}/copy {disk}'
        assert read_of("stats", copy) == "2.00 MiB"
        assert read_of("noextents stats", copy) == "64.00 MiB"
        filtered(uri, "checkwrite", f'nbdcopy {disk} "$uri" && nbdcopy "$uri" "$uri"')
        zero = script("h.zero(1 << 20, 40 << 20); h.flush()")
        held = disk.stat().st_blocks
        filtered(uri, "nozero", zero, "zeromode=notrim")  # every write of zeroes is without holes
        assert disk.stat().st_blocks == held
        filtered(uri, "nozero", zero, "zeromode=plugin")
        assert disk.stat().st_blocks == held - (MIB >> 9)
    assert disk.read_bytes()[40 * MIB : 41 * MIB] == bytes(MIB)


def test_fua_outlives_the_power_whoever_makes_it(tmp_path: Path) -> None:
    """As our flag on each write, as a write and our flush; without either it is lost."""
    with disk_server(tmp_path, "--size", "1M") as serving:
        (uri,) = serving.found
        for at, mode in enumerate(("emulate", "native", "force", "discard")):
            flags = "" if mode == "force" else ", nbd.CMD_FLAG_FUA"
            write = f"h.pwrite(bytes([7]) * 4096, {at} << 12{flags})"
            filtered(uri, "fua", script(write), f"fuamode={mode}")
        assert main(["disk", "cut", str(tmp_path / "socket")]) == 0
        found = script("print(*(h.pread(4096, at << 12)[0] for at in range(4)))")
        assert filtered(uri, "nofilter", found) == "7 7 7 0\n"
        assert serving.end() == (0, "dmcopy: disk: the power was cut\n")


BOTH = """
other = nbd.NBD()
other.connect_uri(h.get_uri())
assert h.can_multi_conn() and other.can_multi_conn()
h.pwrite(b"one" + bytes(509), 0)
assert other.pread(512, 0)[:3] == b"one"
other.flush()
"""


def test_a_flush_is_for_the_writes_of_all_connections(tmp_path: Path) -> None:
    """Nbdkit opens one of ours for each of its own, and says of them what we say."""
    with disk_server(tmp_path, "--size", "1M") as serving:
        (uri,) = serving.found
        filtered(uri, "multi-conn", script(BOTH), "multi-conn-mode=plugin")
        assert main(["disk", "cut", str(tmp_path / "socket")]) == 0
        assert filtered(uri, "nofilter", script("print(h.pread(512, 0)[:3].decode())")) == "one\n"
        assert serving.end() == (0, "dmcopy: disk: the power was cut\n")


LIVES = """
import random
rng = random.Random(7)
model = [0] * 64
for _ in range(150):
    one = nbd.NBD()
    if rng.random() < 0.2:
        one.set_opt_mode(True)  # it leaves in the middle of the handshake
        one.connect_uri(uri)
        one.opt_list(lambda name, about: 0)
        continue
    one.connect_uri(uri)
    at = rng.randrange(64)
    assert one.pread(512, at * 512)[0] == model[at]
    model[at] = rng.randrange(256)
    one.pwrite(bytes([model[at]]) * 512, at * 512)
    if rng.random() < 0.5:
        for _ in range(20):
            one.aio_pread(nbd.Buffer(65536), 0)  # and nothing takes the answers
    else:
        one.shutdown()
"""


def test_connections_of_short_lives(tmp_path: Path) -> None:
    """Each finds what the last one wrote, however it ended; none leaves a descriptor."""
    (tmp_path / "disk").write_bytes(bytes(MIB))
    words = [tmp_path / "disk", "--via", "nbd", "--socket", tmp_path / "socket"]
    with Serving(*words) as serving:
        opened = Path(f"/proc/{serving.process.pid}/fd")
        before = len(list(opened.iterdir()))
        run("nbdsh", "-c", f"uri = {serving.found[0]!r}", "-c", LIVES)
        until(lambda: len(list(opened.iterdir())) == before, "the ends of the connections")


def test_a_client_outlives_a_server_that_is_killed(tmp_path: Path) -> None:
    """Its retry filter connects again, to the next one, and finds what was flushed."""
    (tmp_path / "disk").write_bytes(bytes(MIB))
    words = [tmp_path / "disk", "--via", "nbd", "--socket", tmp_path / "socket"]
    first = Serving(*words)

    def next_one() -> Serving:
        first.process.communicate(timeout=DEADLINE)
        return Serving(*words)

    text = f"""
h.pwrite(b"a" * 512, 0)
h.flush()
import os
os.kill({first.process.pid}, {signal.SIGKILL})
assert h.pread(512, 0) == b"a" * 512
h.pwrite(b"b" * 512, 512)
"""
    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(next_one)
        try:
            retry = ("retries=60", "retry-delay=1", "retry-exponential=no")
            filtered(*first.found, "retry", script(text), *retry)
        finally:
            first.process.kill()
            second.result().end()
    assert (tmp_path / "disk").read_bytes()[:1024] == b"a" * 512 + b"b" * 512
