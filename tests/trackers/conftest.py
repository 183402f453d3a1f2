"""A server of MLflow's, and a door before it that can be shut."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE))


class Door:
    """Passes connections on to a server; shut, it refuses them."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener: socket.socket | None = None
        self.port = 0
        self.open()

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def open(self) -> None:
        self._listener = listener = socket.create_server(("127.0.0.1", self.port))
        self.port = listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def shut(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.shutdown(socket.SHUT_RDWR)  # frees the thread that accepts
            listener.close()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._target))
            for pair in ((client, server), (server, client)):
                threading.Thread(target=_pass_on, args=pair, daemon=True).start()


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        pass


class Server:
    """What a server of MLflow's says over HTTP, without MLflow's own client."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.uri = f"http://127.0.0.1:{port}"

    def ask(self, path: str, **query: Any) -> Any:
        data = json.dumps(query["json"]).encode() if "json" in query else None
        head = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.uri}/api/2.0/mlflow/{path}", data, head)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    def run(self, run_id: str) -> dict[str, Any]:
        found = self.ask(f"runs/get?run_id={run_id}")["run"]
        named = {
            part: {each["key"]: each["value"] for each in found["data"].get(part, ())}
            for part in ("params", "tags", "metrics")
        }
        return {**named, "status": found["info"]["status"]}

    def points(self, run_id: str, key: str) -> list[tuple[int, float]]:
        found = self.ask(f"metrics/get-history?run_id={run_id}&metric_key={key}")
        points = [(int(each.get("step", 0)), each["value"]) for each in found.get("metrics", ())]
        return sorted(points)

    def runs(self, experiment: str) -> list[str]:
        found = self.ask(f"experiments/get-by-name?experiment_name={experiment}")["experiment"]
        query = {"experiment_ids": [found["experiment_id"]]}
        runs = self.ask("runs/search", json=query).get("runs", ())
        return [each["info"]["run_id"] for each in runs]


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A real server on the loopback, with SQLite."""
    pytest.importorskip("mlflow", reason="needs mlflow (extra 'mlflow')")
    folder = tmp_path_factory.mktemp("mlflow")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
    command += ["--artifacts-destination", str(folder / "artifacts"), "--workers", "1"]
    log = (folder / "log.txt").open("w")
    process = subprocess.Popen(
        command, stdout=log, stderr=subprocess.STDOUT, cwd=folder, start_new_session=True
    )
    try:
        waiting = threading.Event()
        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except OSError:
                assert process.poll() is None, (folder / "log.txt").read_text()
                waiting.wait(0.2)
        yield Server(port)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        log.close()


@pytest.fixture
def door(server: Server) -> Iterator[Door]:
    """The way to the server, which a test can shut."""
    door = Door(server.port)
    yield door
    door.shut()
