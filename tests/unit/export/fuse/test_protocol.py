"""The messages of /dev/fuse: what the kernel's headers say, byte for byte."""

from __future__ import annotations

import stat
import struct

from hypothesis import given
from hypothesis import strategies as st

from dmcopy.export.fuse import protocol

NEW_FLAGS = protocol.DIRECT_IO_ALLOW_MMAP >> 32


def test_sizes_are_those_of_the_header_file() -> None:
    assert protocol.HEADER.size == 40
    assert protocol.IO.size == 40
    assert protocol.REPLY.size == 16
    assert len(protocol.attr_reply(0, mode=0o600, owner=(0, 0), seconds=0)) == 16 + 88
    assert len(protocol.open_reply()) == 16
    assert len(protocol.statfs_reply(0)) == 80
    assert len(protocol.write_reply(0)) == 8


def test_init_takes_what_it_knows_of_the_offer() -> None:
    offered = 0xFFFFFFFF
    body = struct.pack("=IIIII44x", 7, 45, 131072, offered, 0xFFFFFFFF)
    offer = protocol.parse_init(body)
    assert (offer.major, offer.minor) == (7, 45)
    answer = protocol.init_reply(offer, max_bytes=1 << 18, depth=64)
    assert len(answer) == 64
    major, minor, readahead, flags, background, congestion, max_write = struct.unpack_from(
        "=IIIIHHI", answer
    )
    _granularity, max_pages, _alignment, flags2 = struct.unpack_from("=IHHI", answer, 24)
    assert (major, minor, readahead) == (7, protocol.MINOR, 131072)
    assert (background, congestion, max_write) == (64, 48, 1 << 18)
    assert max_pages == (1 << 18) // 4096 + 1
    assert flags2 == NEW_FLAGS
    assert flags & protocol.ASYNC_DIO
    assert not flags & (1 << 16), "the write-back cache would keep what was written"
    assert not flags & (1 << 3), "O_TRUNC would make the kernel think that the file is empty"


def test_init_of_an_older_kernel_is_shorter() -> None:
    offer = protocol.parse_init(struct.pack("=IIII", 7, 31, 4096, protocol.MAX_PAGES))
    assert offer == (7, 31, 4096, protocol.MAX_PAGES)
    answer = protocol.init_reply(offer, max_bytes=1 << 18, depth=64)
    assert struct.unpack_from("=IIII", answer) == (7, 31, 4096, protocol.MAX_PAGES)
    assert struct.unpack_from("=I", answer, 32) == (0,)


def test_the_second_flags_count_only_where_the_first_say_so() -> None:
    body = struct.pack("=IIIII44x", 7, 45, 0, protocol.MAX_PAGES, NEW_FLAGS)
    assert protocol.parse_init(body).flags == protocol.MAX_PAGES


@given(st.integers(0, (1 << 63) - 1))
def test_attributes_are_those_of_a_file_and_stand(size: int) -> None:
    answer = protocol.attr_reply(size, mode=0o600, owner=(1000, 100), seconds=5)
    valid, nanoseconds, _, ino, shown, blocks = struct.unpack_from("=QIIQQQ", answer)
    mode, links, user, group = struct.unpack_from("=IIII", answer, 16 + 6 * 8 + 3 * 4)
    assert valid > 1 << 24
    assert (nanoseconds, ino, shown, blocks) == (0, 1, size, size >> 9)
    assert stat.S_ISREG(mode)
    assert stat.S_IMODE(mode) == 0o600
    assert (links, user, group) == (1, 1000, 100)


def test_answers_say_their_length_and_whose_they_are() -> None:
    assert protocol.reply(6, b"12345678") == struct.pack("=IiQ", 24, 0, 6) + b"12345678"
    assert protocol.error_reply(6, 5) == struct.pack("=IiQ", 16, -5, 6)
