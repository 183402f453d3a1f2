from __future__ import annotations

import gzip
import hashlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from eventtrain.data import mnist
from eventtrain.data.mnist import load_mnist, read_idx
from eventtrain.errors import DataError


def idx(*shape: int) -> bytes:
    """A small IDX file whose values count up."""
    header = b"\0\0\x08" + bytes([len(shape)]) + b"".join(n.to_bytes(4, "big") for n in shape)
    return header + bytes(i % 256 for i in range(torch.Size(shape).numel()))


IMAGES, LABELS = idx(6, 4, 4), idx(6)
NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")
PACKED = {
    f"{name}.gz": gzip.compress(data) for name, data in zip(NAMES, (IMAGES, LABELS), strict=True)
}


def fill(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in PACKED.items():
        (folder / name).write_bytes(data)
    return folder


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


Answer = Callable[[BaseHTTPRequestHandler, bytes], None]


def good(request: BaseHTTPRequestHandler, data: bytes) -> None:
    request.send_response(200)
    request.send_header("Content-Length", str(len(data)))
    request.end_headers()
    request.wfile.write(data)


def unsized(request: BaseHTTPRequestHandler, data: bytes) -> None:
    request.send_response(200)
    request.end_headers()
    request.wfile.write(data)


def half(request: BaseHTTPRequestHandler, data: bytes) -> None:
    request.send_response(200)
    request.send_header("Content-Length", str(len(data)))
    request.end_headers()
    request.wfile.write(data[: len(data) // 2])


def unsized_half(request: BaseHTTPRequestHandler, data: bytes) -> None:
    unsized(request, data[: len(data) // 2])


def wrong(request: BaseHTTPRequestHandler, data: bytes) -> None:
    good(request, gzip.compress(b"something else"))


def garbage(request: BaseHTTPRequestHandler, data: bytes) -> None:
    good(request, b"<html>welcome</html>")


def missing(request: BaseHTTPRequestHandler, data: bytes) -> None:
    request.send_error(404)


def silent(request: BaseHTTPRequestHandler, data: bytes) -> None:
    stop.wait(20)


def interrupting(request: BaseHTTPRequestHandler, data: bytes) -> None:
    """Send half, then press Ctrl-C while the client waits for the rest."""
    half(request, data)
    request.wfile.flush()
    main = threading.main_thread().ident
    assert main is not None
    signal.pthread_kill(main, signal.SIGINT)
    stop.wait(20)


ANSWERS: dict[str, Answer] = {
    answer.__name__: answer
    for answer in (
        good, unsized, half, unsized_half, wrong, garbage, missing, silent, interrupting
    )
}  # fmt: skip
stop = threading.Event()


class Handler(BaseHTTPRequestHandler):
    """Answers ``/half/NAME`` with the answer called half."""

    def do_GET(self) -> None:
        _, answer, name = self.path.split("/")
        ANSWERS[answer](self, PACKED[name])

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    stop.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        stop.set()
        httpd.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Small files in MNIST's place, an empty cache folder, and no mirrors."""
    monkeypatch.setattr(mnist, "IMAGES", (NAMES[0], sha256(IMAGES)))
    monkeypatch.setattr(mnist, "LABELS", (NAMES[1], sha256(LABELS)))
    monkeypatch.setattr(mnist, "MIRRORS", ())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("EVENTTRAIN_DATA", raising=False)
    return tmp_path / "cache" / "eventtrain" / "mnist"


@pytest.fixture
def mirrors(server: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def use(*answers: str) -> None:
        monkeypatch.setattr(mnist, "MIRRORS", tuple(f"{server}/{answer}/" for answer in answers))

    return use


def assert_loaded(loaded: tuple[torch.Tensor, torch.Tensor]) -> None:
    images, labels = loaded
    assert images.flatten().tolist() == list(range(96)) and images.shape == (6, 4, 4)
    assert labels.tolist() == list(range(6))


def content(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- where the files are looked for ------------------------------------------


def test_the_files_are_read_from_a_given_folder(tmp_path: Path) -> None:
    assert_loaded(load_mnist(fill(tmp_path / "given")))


def test_a_given_folder_may_be_text(tmp_path: Path) -> None:
    assert_loaded(load_mnist(str(fill(tmp_path / "given"))))


def test_decompressed_files_are_read_too(tmp_path: Path) -> None:
    for name, data in zip(NAMES, (IMAGES, LABELS), strict=True):
        (tmp_path / name).write_bytes(data)
    assert_loaded(load_mnist(tmp_path))


def test_a_given_folder_without_the_files_is_told_which_to_put_there(
    tmp_path: Path, mirrors: Callable[..., None]
) -> None:
    mirrors("good")
    with pytest.raises(DataError) as caught:
        load_mnist(tmp_path)
    for part in (str(tmp_path), *PACKED):
        assert part in str(caught.value)
    assert content(tmp_path) == []


def test_a_given_folder_counts_for_more_than_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVENTTRAIN_DATA", str(tmp_path / "nowhere"))
    assert_loaded(load_mnist(fill(tmp_path / "given")))


@pytest.mark.parametrize("below", ["", "mnist"])
def test_the_environment_names_the_folder_or_the_one_above(
    below: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path / "data" / below)
    monkeypatch.setenv("EVENTTRAIN_DATA", str(tmp_path / "data"))
    assert_loaded(load_mnist())


def test_an_environment_folder_without_the_files_is_an_error_and_no_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mirrors: Callable[..., None], cache: Path
) -> None:
    mirrors("good")
    monkeypatch.setenv("EVENTTRAIN_DATA", str(tmp_path))
    with pytest.raises(DataError, match=r"\(EVENTTRAIN_DATA\)\. Put train-images"):
        load_mnist()
    assert not cache.exists()


def test_an_empty_environment_variable_counts_as_unset(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(cache)
    monkeypatch.setenv("EVENTTRAIN_DATA", "")
    assert_loaded(load_mnist())


def test_without_xdg_the_cache_is_in_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    fill(tmp_path / ".cache" / "eventtrain" / "mnist")
    assert_loaded(load_mnist())


# --- damage ------------------------------------------------------------------


def test_a_file_of_other_content_is_named_with_both_hashes(tmp_path: Path) -> None:
    path = fill(tmp_path) / f"{NAMES[1]}.gz"
    path.write_bytes(gzip.compress(b"other"))
    with pytest.raises(DataError) as caught:
        load_mnist(tmp_path)
    for part in (str(path), sha256(b"other"), sha256(LABELS), "Put a whole file in its place"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    "damage", [lambda d: d[:-9], lambda d: b"x" + d, lambda d: d[:10] + b"\xff" * 20]
)
def test_a_file_that_does_not_unpack_is_named_with_the_hash_it_should_have(
    damage: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    path = fill(tmp_path) / f"{NAMES[0]}.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match="cannot be decompressed") as caught:
        load_mnist(tmp_path)
    assert str(path) in str(caught.value) and sha256(IMAGES) in str(caught.value)


def test_a_damaged_file_in_a_given_folder_is_left_as_it_is(tmp_path: Path) -> None:
    path = fill(tmp_path) / f"{NAMES[0]}.gz"
    path.write_bytes(b"damaged")
    with pytest.raises(DataError):
        load_mnist(tmp_path)
    assert path.read_bytes() == b"damaged"


def test_a_damaged_file_in_the_cache_is_downloaded_anew(
    cache: Path, mirrors: Callable[..., None]
) -> None:
    mirrors("good")
    (fill(cache) / f"{NAMES[0]}.gz").write_bytes(b"damaged")
    assert_loaded(load_mnist())
    assert (cache / f"{NAMES[0]}.gz").read_bytes() == PACKED[f"{NAMES[0]}.gz"]


def test_a_damaged_file_in_the_cache_that_cannot_be_replaced_is_reported(cache: Path) -> None:
    (fill(cache) / f"{NAMES[0]}.gz").write_bytes(b"damaged")
    with pytest.raises(DataError, match=f"{NAMES[0]}.gz is damaged"):
        load_mnist()


# --- download ----------------------------------------------------------------


@pytest.mark.parametrize("answer", ["good", "unsized"])
def test_missing_files_are_downloaded_into_the_cache(
    answer: str, cache: Path, mirrors: Callable[..., None]
) -> None:
    mirrors(answer)
    assert_loaded(load_mnist())
    assert {path.name: path.read_bytes() for path in cache.iterdir()} == PACKED


def test_what_is_in_the_cache_is_not_downloaded_again(cache: Path) -> None:
    fill(cache)
    assert_loaded(load_mnist())


@pytest.mark.parametrize(
    ("answer", "cause"),
    [
        ("half", "the connection closed after"),
        ("unsized_half", "cannot be decompressed"),
        ("wrong", sha256(b"something else")),
        ("garbage", "cannot be decompressed"),
        ("missing", "HTTP Error 404"),
        ("silent", "timed out"),
    ],
)
def test_a_bad_mirror_is_reported_and_leaves_nothing_behind(
    answer: str,
    cause: str,
    cache: Path,
    mirrors: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mnist, "TIMEOUT", 0.2)
    mirrors(answer)
    with pytest.raises(DataError) as caught:
        load_mnist()
    assert f"/{answer}/{NAMES[0]}.gz: " in str(caught.value) and cause in str(caught.value)
    assert content(cache) == []


def test_bad_mirrors_are_passed_over_until_a_good_one(
    cache: Path, mirrors: Callable[..., None]
) -> None:
    mirrors("half", "wrong", "missing", "good")
    assert_loaded(load_mnist())
    assert content(cache) == sorted(PACKED)


def test_ctrl_c_in_a_download_is_raised_and_leaves_nothing_behind(
    cache: Path, mirrors: Callable[..., None]
) -> None:
    mirrors("interrupting", "good")
    with pytest.raises(KeyboardInterrupt):
        load_mnist()
    assert content(cache) == []


def test_without_a_network_the_error_says_everything_that_helps(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed_soon:
        port = closed_soon.getsockname()[1]
    hosts = (f"http://127.0.0.1:{port}/a/", f"http://127.0.0.1:{port}/b/")
    monkeypatch.setattr(mnist, "MIRRORS", hosts)
    with pytest.raises(DataError) as caught:
        load_mnist()
    for part in (*hosts, "refused", str(cache), *PACKED, "EVENTTRAIN_DATA", 'get_data("digits")'):
        assert part in str(caught.value)


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX file modes")
@pytest.mark.skipif(getattr(os, "geteuid", int)() == 0, reason="root may write anywhere")
def test_a_cache_that_cannot_be_written_is_reported_with_the_way_out(
    tmp_path: Path, mirrors: Callable[..., None]
) -> None:
    mirrors("good")
    tmp_path.chmod(0o500)
    with pytest.raises(DataError, match=r"Permission denied(.|\n)*set EVENTTRAIN_DATA"):
        load_mnist()


def test_a_cache_path_that_is_a_file_is_reported_with_the_way_out(
    tmp_path: Path, mirrors: Callable[..., None]
) -> None:
    mirrors("good")
    (tmp_path / "cache").write_text("in the way")
    with pytest.raises(DataError, match=r"Not a directory(.|\n)*set EVENTTRAIN_DATA"):
        load_mnist()


def test_progress_is_a_bar_per_file_where_tqdm_is_installed(
    mirrors: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tqdm")
    mirrors("good")
    load_mnist()
    shown = capsys.readouterr()
    assert all(f"{name}: 100%" in shown.err for name in PACKED) and shown.out == ""


def test_progress_is_a_line_per_file_without_tqdm(
    mirrors: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "tqdm", None)
    mirrors("good")
    load_mnist()
    shown = capsys.readouterr()
    assert [line.rpartition("/")[2] for line in shown.err.splitlines()] == list(PACKED)
    assert shown.out == ""


# --- IDX ---------------------------------------------------------------------


def test_an_idx_file_gives_a_tensor_of_its_shape() -> None:
    tensor = read_idx(idx(2, 3))
    assert tensor.dtype == torch.uint8 and tensor.tolist() == [[0, 1, 2], [3, 4, 5]]


def test_the_tensor_of_an_idx_file_may_be_written_to() -> None:
    data = idx(3)
    read_idx(data).fill_(9)
    assert data == idx(3)


@pytest.mark.parametrize(
    "data",
    [b"", b"\0\0", b"\x89PNG" + bytes(20), b"\0\0\x0d\x01\0\0\0\x01\0\0\0\0", b"\0\0\x08\0\0"],
    ids=["empty", "short", "png", "floats", "no dimensions"],
)
def test_another_kind_of_file_is_told_by_its_first_bytes(data: bytes) -> None:
    with pytest.raises(DataError, match=f"begins with {data[:4].hex(' ') or 'nothing'}"):
        read_idx(data)


@pytest.mark.parametrize(
    "data",
    [idx(2, 3)[:-1], idx(2, 3) + b"x", idx(2, 3)[:7], idx(0, 3)],
    ids=["too short", "too long", "half a header", "no items"],
)
def test_a_length_that_does_not_fit_the_header_is_refused(data: bytes) -> None:
    with pytest.raises(DataError, match=f"but this one holds {len(data)}"):
        read_idx(data)
