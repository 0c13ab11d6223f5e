"""Clients of other people: QEMU's tools, libnbd's, fio. They judge what we serve."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.blocks import read_block
from tests.loop.export.strangers import SECTORS, Pair, content, run, served_pair
from tests.unit.export.certificates import Certificates
from tests.unit.export.serving import Serving


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    with served_pair(tmp_path) as found:
        yield found


def test_what_nbdinfo_says(pair: Pair) -> None:
    found = json.loads(run("nbdinfo", "--json", "--no-content", "--list", pair.live))
    assert found["structured"]
    assert [one["export-name"] for one in found["exports"]] == ["then", "live"]
    for one in found["exports"]:
        assert one["export-size"] == SECTORS * 512
        able = [
            "can_df",
            "can_fast_zero",
            "can_flush",
            "can_fua",
            "can_multi_conn",
            "can_trim",
            "can_zero",
        ]
        assert all(one[what] for what in able)
        assert (one["block_size_minimum"], one["block_size_maximum"]) == (512, 32 << 20)
        assert not one["is_read_only"]


def test_qemu_writes_an_origin_while_its_snapshot_is_read(pair: Pair) -> None:
    commands = [
        *("write -P 0x11 0 4M", "write -P 7 1M 64k", "write -f -P 8 2M 512", "write -z 8M 1M"),
        *("write -z -u 9M 4k", "aio_write -P 9 10M 1M", "aio_flush", "discard 16M 4M", "flush"),
        *("read -P 7 1M 64k", "read -P 8 2M 512", "read -P 0 8M 1M", "read -P 9 10M 1M"),
    ]
    assert content(pair.then, pair.folder) == pair.before
    words = [word for command in commands for word in ("-c", command)]
    assert "verification failed" not in run("qemu-io", "-f", "raw", *words, pair.live)
    assert content(pair.then, pair.folder) == pair.before
    run("qemu-io", "-r", "-f", "raw", "-c", "read -P 9 10M 1M", pair.live)


def test_qemu_img_converts_and_compares(pair: Pair) -> None:
    image = pair.folder / "image.qcow2"
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", pair.then, image)
    run("qemu-img", "compare", "-f", "raw", "-F", "qcow2", pair.then, image)
    run("qemu-io", "-f", "raw", "-c", "write -P 5 1M 1M", pair.live)
    run("qemu-img", "compare", "-f", "raw", "-F", "qcow2", pair.live, image, code=1)
    # Back to what it was, with zeroes written as such: into an export that is there (-n).
    words = ["convert", "-n", "-W", "-m", 8, "-f", "qcow2", "-O", "raw", image, pair.live]
    run("qemu-img", *words)
    assert content(pair.live, pair.folder) == pair.before


def test_fio_verifies(pair: Pair) -> None:
    said = run(
        "fio",
        "--name=verify",
        "--ioengine=nbd",
        f"--uri={pair.live}",
        "--rw=randwrite",
        "--bsrange=512-128k",
        "--bs_unaligned=0",
        "--blockalign=512",
        "--iodepth=16",
        "--size=16M",
        "--io_size=8M",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--verify_state_save=0",
        "--output-format=json",
    )
    (job,) = json.loads(said[said.index("{") :])["jobs"]
    assert job["error"] == 0
    assert job["read"]["total_ios"] == job["write"]["total_ios"] > 0
    assert content(pair.then, pair.folder) == pair.before


SCRIPT = """
import errno
h.set_strict_mode(0)
h.set_export_name("live")
h.connect_uri(uri)
size = h.get_size()
for call, number in [
    (lambda: h.pread(512, size), errno.EINVAL),
    (lambda: h.pwrite(b"x" * 512, size), errno.ENOSPC),
    (lambda: h.pread(512, 1), errno.EINVAL),
    (lambda: h.zero(4096, 0, nbd.CMD_FLAG_FAST_ZERO), errno.EOPNOTSUPP),
    (lambda: h.cache(512, 0), errno.EINVAL),
]:
    try:
        call()
    except nbd.Error as error:
        assert error.errnum == number, error
    else:
        raise AssertionError(number)
h.pwrite(b"a" * 1024, 512, nbd.CMD_FLAG_FUA)
assert h.pread(1024, 512) == b"a" * 1024
assert h.pread_structured(512, 512, lambda data, at, status, error: 0, nbd.CMD_FLAG_DF)
h.zero(512, 512, nbd.CMD_FLAG_NO_HOLE)
assert h.pread(1024, 512) == bytes(512) + b"a" * 512
h.trim(4096, 8192)
h.flush()
pieces = [nbd.Buffer(4096) for _ in range(64)]
tags = [h.aio_pread(piece, at * 4096) for at, piece in enumerate(pieces)]
while h.aio_in_flight():
    h.poll(-1)
assert all(h.aio_command_completed(tag) for tag in tags)
h.shutdown()
"""


def test_nbdsh_asks_for_what_cannot_be(pair: Pair) -> None:
    run("nbdsh", "-c", f"uri = {pair.live!r}", "-c", SCRIPT)
    assert content(pair.then, pair.folder) == pair.before


def test_the_holes_of_a_file_are_seen(tmp_path: Path) -> None:
    disk, socket = tmp_path / "disk", tmp_path / "socket"
    with open(disk, "wb") as file:
        file.truncate(256 << 20)
        file.seek(100 << 20)
        file.write(os.urandom(1 << 20))
    with Serving(disk, "--via", "nbd", "--socket", socket) as serving:
        (uri,) = serving.found
        found = json.loads(run("nbdinfo", "--json", "--map", uri))
        assert [(one["offset"] >> 20, one["length"] >> 20, one["type"]) for one in found] == [
            (0, 100, 3),
            (100, 1, 0),
            (101, 155, 3),
        ]
        assert content(uri, tmp_path) == disk.read_bytes()
        image = tmp_path / "image.qcow2"
        run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", uri, image)
        run("qemu-img", "compare", "-f", "raw", "-F", "qcow2", uri, image)


def test_by_tls_as_the_guide_shows(tmp_path: Path) -> None:
    made = Certificates(tmp_path / "tls")
    disk = tmp_path / "disk.img"
    disk.write_bytes(os.urandom(8 << 20))
    lines = re.findall(r"(?m)^\w+\$ ((?:.*\\\n)*.*)", read_block("dmcopy/guide/serve.md"))
    serve, *clients = [
        line.replace("\\\n", "")
        .replace("0.0.0.0:10809", "127.0.0.1:0")
        .replace("/etc/pki/dmcopy", str(made.server))
        .replace("/home/me/pki", str(made.client))
        for line in lines
    ]
    noun, *words = shlex.split(serve)[1:]
    assert words.pop() == disk.name
    with Serving(*words, disk, noun=noun) as serving:
        (uri,) = serving.found
        assert uri.startswith("nbds://127.0.0.1:")
        port = uri.removesuffix("/disk.img").rpartition(":")[2]
        assert len(clients) == 2
        for line in clients:
            here = line.replace("//server/", f"//localhost:{port}/").replace("10809", port)
            run(*shlex.split(here.replace("host=server", "host=localhost")))
        mine = f"{uri}?tls-certificates={made.client}"
        assert json.loads(run("nbdinfo", "--json", "--no-content", mine))["TLS"]
        assert content(mine, tmp_path) == disk.read_bytes()
        run("nbdinfo", f"{uri}?tls-certificates={made.stranger()}", code=1)
        run("nbdinfo", uri.replace("nbds", "nbd"), code=1)
        creds = f"tls-creds-x509,id=tls,endpoint=client,dir={made.client}"
        image = f"driver=nbd,host=localhost,port={port},export=disk.img,tls-creds=tls"
        commands = ["-c", "write -P 7 1M 1M", "-c", "flush", "-c", "read -P 7 1M 1M"]
        said = run("qemu-io", "--object", creds, "--image-opts", image, *commands)
        assert "verification failed" not in said
    assert disk.read_bytes()[1 << 20 : 2 << 20] == b"\x07" * (1 << 20)
