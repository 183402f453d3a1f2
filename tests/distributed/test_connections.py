"""Ending the connections between ranks, with real ones of one process to itself."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from eventtrain.distributed.connections import cut, own_ends

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="lists no descriptors")


@pytest.fixture
def ends() -> Iterator[tuple[int, int]]:
    """Descriptors of both ends of a connection, which are no sockets of Python's."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        here = socket.create_connection(server.getsockname())
        there, _ = server.accept()
    pair = here.detach(), there.detach()
    yield pair
    for descriptor in pair:
        os.close(descriptor)


def name_of(descriptor: int) -> str:
    with socket.socket(fileno=os.dup(descriptor)) as found:
        return "{}:{}".format(*found.getsockname())


def test_both_ends_of_a_connection_are_told_of(ends: tuple[int, int]) -> None:
    assert {name_of(end) for end in ends} <= set(own_ends())


def test_a_connection_to_an_end_that_was_told_of_comes_to_its_end(ends: tuple[int, int]) -> None:
    here, there = ends
    os.set_blocking(there, False)
    assert cut({name_of(there)}) == 1
    assert os.read(there, 1) == b""
    os.fstat(here)  # it is still open, whoever has it closes it


def test_other_connections_and_those_of_a_store_stay(ends: tuple[int, int]) -> None:
    here, there = ends
    port = int(name_of(here).rpartition(":")[2])
    assert cut({"127.0.0.1:1"}) == 0
    assert cut({name_of(there)}, ports=[port]) == 0
    os.write(here, b"x")
    assert os.read(there, 1) == b"x"


def test_a_socket_of_python_stays() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        with socket.create_connection(server.getsockname()) as here:
            there, _ = server.accept()
            with there:
                assert cut({"{}:{}".format(*there.getsockname())}) == 0
                here.sendall(b"x")
                assert there.recv(1) == b"x"
