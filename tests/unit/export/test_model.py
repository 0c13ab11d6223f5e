"""An origin and its snapshot, written and read by NBD over several connections, against a model."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from .client import Client
from .serving import Serving

SECTORS = 2048
READ, WRITE, FLUSH, ZEROES = 0, 1, 3, 6


class Side:
    """One export, its connections, and what it should hold."""

    def __init__(self, place: Path, name: str, content: bytes) -> None:
        self.model = bytearray(content)
        self.clients = []
        for number in range(2):
            client = Client(str(place))
            client.greet()
            assert client.go(name, structured=bool(number)) == 1
            self.clients.append(client)

    def batch(self, rng: random.Random) -> None:
        """Send up to 16 requests on ranges apart, by all connections, then take the replies."""
        edges = sorted(rng.sample(range(SECTORS), 2 * rng.randint(1, 16)))
        expected: list[dict[int, bytes]] = [{}, {}]
        after = self.model[:]
        for cookie, (first, last) in enumerate(zip(edges[::2], edges[1::2], strict=True)):
            which = rng.randrange(2)
            count = min(last - first, rng.choice((1, 8, 100, 500)))
            offset, length = first << 9, count << 9
            command = rng.choice((READ, READ, WRITE, WRITE, WRITE, ZEROES, FLUSH))
            data = rng.randbytes(length) if command == WRITE else b""
            expected[which][cookie] = b""
            if command == READ:
                expected[which][cookie] = bytes(self.model[offset : offset + length])
            elif command != FLUSH:
                after[offset : offset + length] = data or bytes(length)
            if command == FLUSH:
                offset = length = 0
            flags = rng.choice((0, 1)) if command != READ else 0
            self.clients[which].send(command, offset, length, data, flags=flags, cookie=cookie)
        for client, replies in zip(self.clients, expected, strict=True):
            for _ in range(len(replies)):
                reply = client.reply()
                assert reply.error == 0
                assert reply.data == replies.pop(reply.cookie)
        self.model = after

    def check(self) -> None:
        assert self.clients[0].read(0, SECTORS << 9) == bytes(self.model)

    def close(self) -> None:
        for client in self.clients:
            client.socket.close()


@pytest.mark.parametrize("seed", range(3))
def test_a_snapshot_and_its_origin(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    content = rng.randbytes(SECTORS << 9)
    disk, cow, place = tmp_path / "disk", tmp_path / "cow", tmp_path / "socket"
    disk.write_bytes(content)
    cow.write_bytes(bytes(2 * SECTORS << 9))
    spec = f"then,,,,0 {SECTORS} snapshot {disk} {cow} P {rng.choice((8, 16, 64))};"
    spec += f"live,,,,0 {SECTORS} snapshot-origin {disk}"
    contents = {"then": content, "live": content}
    for _ in range(2):  # the second time the store is read again
        with Serving("--concise", spec, "--socket", place, lines=2):
            sides = {name: Side(place, name, data) for name, data in contents.items()}
            for _ in range(40):
                rng.choice(list(sides.values())).batch(rng)
            for name, side in sides.items():
                side.check()
                contents[name] = bytes(side.model)
                side.close()
    assert disk.read_bytes() == contents["live"]
