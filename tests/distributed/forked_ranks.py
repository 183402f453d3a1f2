"""Ranks that are forks of one process, which serves their store and outlives them, as torchrun's
agent does; but it ends nobody when a rank has died. Importing torch is what takes longest."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
Deeds = Callable[[], Mapping[str, Callable[[Path], object]]]


class Ranks:
    """A program that calls ``serve``, in a session of its own.

    Args:
        program: Its file.
        folder: Where each deed has a folder of its name.
        size: How many ranks.
        deeds: What they do, one after the other, each with ranks of its own.
    """

    def __init__(self, program: str, folder: Path, size: int, *deeds: str) -> None:
        self.folder, self.size, self.said = folder, size, ""
        for deed in deeds:
            (folder / deed).mkdir()
        command = [sys.executable, str(Path(__file__).with_name(program)), str(folder), str(size)]
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "PYTHONPATH": path}
        self.process = subprocess.Popen(
            [*command, *deeds],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def wait_for(self, deed: str, name: str, seconds: float = 50.0) -> str:
        """Wait for a file in the folder of a deed, and return what is in it."""
        file, end = self.folder / deed / name, time.monotonic() + seconds
        while not file.exists():
            if time.monotonic() > end or self.process.poll() is not None:
                self.end()
                raise AssertionError(f"there is no {name} of {deed!r}: {self.said}")
            time.sleep(0.01)
        return file.read_text()

    def wait(self, limit: float) -> None:
        """Wait for all."""
        try:
            _, self.said = self.process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            self.end()
            raise AssertionError(f"the ranks have not ended: {self.said}") from None

    def told(self, deed: str) -> list[dict[str, Any]]:
        """Return what each rank has told of a deed; nothing where it was ended."""
        files = [self.folder / deed / f"{rank}.json" for rank in range(self.size)]
        told = [json.loads(file.read_text()) if file.exists() else {} for file in files]
        return [{**each, "said": self.said} for each in told]

    def seeds(self, deed: str) -> str:
        """Say which fit each rank was in last."""
        files = sorted((self.folder / deed).glob("*.seed"))
        return f"seeds: {', '.join(file.read_text() for file in files)}"

    def end(self) -> None:
        """End them all, and keep what they have said."""
        os.killpg(self.process.pid, signal.SIGKILL)
        _, self.said = self.process.communicate()


def tell(folder: Path, name: str, told: str) -> None:
    """Write a file of the folder, whole."""
    part = folder / f".{name}.{os.getpid()}"
    part.write_text(told)
    part.rename(folder / name)


def serve(deeds: Deeds) -> None:
    """Have the ranks do what the command line says, one deed after the other."""
    for name in ("torch._dynamo", "eventtrain.callbacks", "eventtrain.plugins"):
        import_module(name)  # before the forks, which all need them
    folder, size = Path(sys.argv[1]), int(sys.argv[2])
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: None)  # they are for the ranks
    for deed in sys.argv[3:]:
        _serve(deeds, deed, folder / deed, size)


def _serve(deeds: Deeds, deed: str, folder: Path, size: int) -> None:
    """Fork ranks, and wait for them; one that is stopped is killed when all others have ended."""
    from torch.distributed import TCPStore

    store = TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)
    os.environ.update(
        WORLD_SIZE=str(size),
        LOCAL_WORLD_SIZE=str(size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(store.port),
        TORCHELASTIC_USE_AGENT_STORE="True",
    )
    left = set()
    for rank in range(size):
        child = os.fork()
        if child == 0:
            os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
            _be_rank(folder, rank, lambda: deeds()[deed])
        left.add(child)
        tell(folder, f"{rank}.pid", str(child))
    while left:
        ended, _ = os.waitpid(-1, os.WNOHANG)
        left.discard(ended)
        if left and all(_state_of(pid) == "T" for pid in left):
            for pid in left:
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def _state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")")[1][1]


def _be_rank(folder: Path, rank: int, deed: Callable[[], Callable[[Path], object]]) -> None:
    code = 0
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        tell(folder, f"{rank}.json", json.dumps(deed()(folder)))
    except BaseException:
        traceback.print_exc()
        code = 1
    finally:
        sys.stderr.flush()
        os._exit(code)  # as a fork: what the parent has is not ours to end
