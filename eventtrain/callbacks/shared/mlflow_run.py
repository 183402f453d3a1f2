"""One run of MLflow's as it is written: opened by whoever first has something to send."""

from __future__ import annotations

import json
import posixpath
import re
import ssl
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import urlopen

from .extras import import_extra
from .tracking import SIGNALS

Item = list[Any]
"""What is sent: its kind and what goes with it, of which JSON is made."""

_LONGEST_KEY, _LONGEST_PARAM, _LONGEST_TAG = 250, 6000, 8000  # characters that MLflow takes
_MOST_METRICS, _MOST_PARAMS = 1000, 100  # in a request
_GATEWAY = (502, 503, 504)  # who answers is somebody before a server that does not
_AGAIN = (408, 429)  # not now
_KEY = "eventtrain.key"


class EndedError(ValueError):
    """A run is not one to go on with."""


class MLflowRun:
    """Writes a run of MLflow's, a new one or one that is there.

    Args:
        about: What says which: ``tracking_uri``; ``run_id`` of one that is there, or ``None``;
            ``experiment``, ``run_name`` and ``tags`` of a new one; ``key``, by which a new one is
            found again whose making was not heard of; ``is_resumed``, whether rows that are there
            are the fit's own; ``is_lent``, whether others end it; ``offset``, the steps of the run
            before its fit, and ``steps``, those of its last row in the checkpoint.

    Attributes:
        about: The same; ``run_id`` is that of the run as soon as it is open.
    """

    def __init__(self, about: Mapping[str, Any]) -> None:
        self.about = dict(about)
        self._client: Any = None
        self._has_tried = False
        self._offset = 0  # steps of what the run had before this fit
        self._rows: set[tuple[int, float]] = set()  # step and epoch of what is there
        self._params: dict[str, str] = {}

    @property
    def uri(self) -> str:
        """Where the server or the store is."""
        return str(self.about["tracking_uri"])

    def send(self, item: Item) -> None:
        """Write one item; a row that is there already is not written twice.

        Args:
            item: ``["params", {...}]``, ``["tags", {...}]``, ``["row", steps, epoch, {...},
                milliseconds]`` or ``["end", status]``.

        Raises:
            ConnectionError: The server does not answer.
            mlflow.exceptions.MlflowException: It does not take the item.
        """
        if not answers(self.uri):
            raise ConnectionError(f"{without_password(self.uri)} does not answer")
        if self._client is None:
            self._client = self._open()
        kind, *rest = item
        senders: dict[str, Callable[..., None]] = {
            "params": self._send_params,
            "tags": self._send_tags,
            "row": self._send_row,
            "end": self._send_end,
        }
        senders[kind](*rest)

    def send_artifact(self, path: Any, folder: str | None) -> None:
        """Upload a file or a folder.

        Args:
            path: Where it is.
            folder: Among the artifacts of the run; ``None`` for their top.
        """
        run_id = self.about["run_id"]
        if path.is_dir():
            name = path.name if folder is None else f"{folder}/{path.name}"
            self._client.log_artifacts(run_id, str(path), name)
        else:
            self._client.log_artifact(run_id, str(path), folder)

    def _open(self) -> Any:
        client = _package().MlflowClient(tracking_uri=self.uri)
        if self.about["run_id"] is None:
            experiment = self._experiment(client)
            self.about["run_id"] = self._made_before(client, experiment)
        if self.about["run_id"] is None:
            self.about["run_id"] = self._made(client, experiment)
        else:
            self._look_at(client)
        return client

    def _made_before(self, client: Any, experiment: str) -> str | None:
        """Return the run that an earlier attempt has made, if its answer may have been lost."""
        if not (self._has_tried or self.about["is_resumed"]):
            return None
        text = f"tags.`{_KEY}` = '{self.about['key']}'"
        found = client.search_runs([experiment], text)
        return str(found[0].info.run_id) if found else None

    def _made(self, client: Any, experiment: str) -> str:
        self._has_tried = True
        tags = {**self.about["tags"], _KEY: self.about["key"]}
        made = client.create_run(experiment, tags=tags, run_name=self.about["run_name"])
        return str(made.info.run_id)

    def _experiment(self, client: Any) -> str:
        name = self.about["experiment"]
        if name is None:
            return str(self.about.get("experiment_id") or "0")
        found = client.get_experiment_by_name(name)
        return str(client.create_experiment(name) if found is None else found.experiment_id)

    def _look_at(self, client: Any) -> None:
        """See what a run that is there has already."""
        run_id = self.about["run_id"]
        found = client.get_run(run_id)
        self._params = dict(found.data.params)
        if "epoch" in found.data.metrics:
            rows = client.get_metric_history(run_id, "epoch")
            places = {(each.step, each.value) for each in rows}
            if self.about["is_resumed"]:
                self._offset, self._rows = self.about["offset"], places
                self._check_that_it_goes_on(found.data.tags)
            else:
                self._offset = max(step for step, _ in places)
        self.about["offset"] = self._offset
        if not self.about["is_lent"]:
            client.update_run(run_id, status="RUNNING")

    def _check_that_it_goes_on(self, tags: Mapping[str, str]) -> None:
        """Refuse a run that ended well with rows which this fit would measure anew."""
        outcome, reason = tags.get("eventtrain.outcome"), tags.get("eventtrain.reason")
        has_ended = outcome == "completed" or (outcome == "cancelled" and reason not in SIGNALS)
        last = self._offset + self.about["steps"]
        beyond = sum(step > last for step, _ in self._rows)
        if has_ended and beyond:
            raise EndedError(
                f"MLflow's run {self.about['run_id']} was {outcome}, with {beyond} rows beyond "
                "this checkpoint, and a row that is there is not written again: MLflow(fork=True) "
                "goes on as a new run"
            )

    def _send_params(self, params: Mapping[str, Any]) -> None:
        kind = _package().entities.Param
        named = {_key(name): str(value)[:_LONGEST_PARAM] for name, value in params.items()}
        # MLflow changes none: those of the first fit stay.
        new = [kind(name, value) for name, value in named.items() if name not in self._params]
        for start in range(0, len(new), _MOST_PARAMS):
            self._client.log_batch(
                self.about["run_id"], params=new[start : start + _MOST_PARAMS], synchronous=True
            )

    def _send_tags(self, tags: Mapping[str, Any]) -> None:
        kind = _package().entities.RunTag
        made = [kind(_key(name), _text(value)[:_LONGEST_TAG]) for name, value in tags.items()]
        self._client.log_batch(self.about["run_id"], tags=made, synchronous=True)

    def _send_row(self, steps: int, epoch: int, row: Mapping[str, float], time: int) -> None:
        kind = _package().entities.Metric
        step = self._offset + steps
        is_whole = "epoch" in row
        if is_whole and (step, float(epoch)) in self._rows:
            return
        # The epoch last: it says that the row is there.
        names = sorted(row, key=lambda name: name == "epoch")
        metrics = [kind(_key(name), float(row[name]), time, step) for name in names]
        for start in range(0, len(metrics), _MOST_METRICS):
            some = metrics[start : start + _MOST_METRICS]
            self._client.log_batch(self.about["run_id"], metrics=some, synchronous=True)
        if is_whole:
            self._rows.add((step, float(epoch)))

    def _send_end(self, status: str) -> None:
        if not self.about["is_lent"]:
            self._client.set_terminated(self.about["run_id"], status)


def is_refusal(error: Exception) -> bool:
    """Whether an exception is MLflow's answer to what was sent, which would be the same again."""
    if isinstance(error, EndedError):
        return True
    status = getattr(error, "get_http_status_code", None)
    if status is None:
        return False
    code = int(status())
    return 400 <= code < 500 and code not in _AGAIN


def is_remote(uri: str) -> bool:
    """Whether a tracking URI is of a server, which may be away."""
    return urlsplit(uri).scheme in ("http", "https")


def answers(uri: str, seconds: float = 5.0) -> bool:
    """Whether a server answers, without the minutes for which a request of MLflow's tries again.

    Args:
        uri: A tracking URI; what is no ``http`` or ``https`` counts as answering.
        seconds: For which it is waited.
    """
    if not is_remote(uri):
        return True
    try:
        with urlopen(without_password(uri).rstrip("/") + "/health", timeout=seconds):
            return True
    except HTTPError as error:
        return error.code not in _GATEWAY
    except URLError as error:
        return isinstance(error.reason, ssl.SSLError)  # MLflow knows whether to trust it
    except OSError:
        return False


def without_password(uri: str) -> str:
    """Return a URI without the name and password that it may have before its host."""
    host = urlsplit(uri).netloc
    return uri.replace(host, host.rpartition("@")[2], 1) if "@" in host else uri


def _key(name: str) -> str:
    """Return a name with the characters that MLflow takes, as a path that leads nowhere else."""
    path = posixpath.normpath(re.sub(r"[^\w./ -]", "_", name, flags=re.ASCII).strip("/"))
    return path.lstrip("./")[:_LONGEST_KEY] or "_"


def _package() -> Any:
    return import_extra("mlflow", user="MLflow", extra="mlflow")


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def rows_among(items: Iterable[Item]) -> int:
    """Return how many of ``items`` are rows."""
    return sum(item[0] == "row" for item in items)
