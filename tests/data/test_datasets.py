from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch

from eventtrain.data.datasets import get_data
from eventtrain.errors import DataError


@pytest.fixture(scope="module")
def mnist_folder() -> Path:
    """The folder of the real MNIST files."""
    beside = Path(__file__).resolve().parents[3] / "shared" / "data" / "mnist"
    named = Path(os.environ.get("EVENTTRAIN_DATA") or beside)
    for folder in (named, named / "mnist"):
        if all(
            (folder / f"train-{part}-ubyte.gz").is_file() for part in ("images-idx3", "labels-idx1")
        ):
            return folder
    pytest.skip("MNIST is not here; set EVENTTRAIN_DATA to a folder that holds its files")


@pytest.fixture(scope="module")
def mnist(mnist_folder: Path) -> tuple[torch.Tensor, ...]:
    return get_data("mnist", mnist_folder)


def test_mnist_is_the_default(
    mnist_folder: Path, mnist: tuple[torch.Tensor, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVENTTRAIN_DATA", str(mnist_folder))
    assert torch.equal(get_data()[3], mnist[3])


def test_mnist_is_split_into_50000_and_10000(mnist: tuple[torch.Tensor, ...]) -> None:
    assert [tuple(part.shape) for part in mnist] == [(50000, 784), (50000,), (10000, 784), (10000,)]


def test_mnist_has_float_inputs_and_integer_targets(mnist: tuple[torch.Tensor, ...]) -> None:
    x_train, y_train, x_valid, y_valid = mnist
    assert x_train.dtype == x_valid.dtype == torch.float32
    assert y_train.dtype == y_valid.dtype == torch.int64


def test_mnist_pixels_span_zero_to_one(mnist: tuple[torch.Tensor, ...]) -> None:
    for x in (mnist[0], mnist[2]):
        assert (x.min(), x.max()) == (0.0, 1.0)


def test_mnist_keeps_the_order_of_the_file(mnist: tuple[torch.Tensor, ...]) -> None:
    # The file's first and last labels, and its count of each digit.
    assert mnist[1][:5].tolist() == [5, 0, 4, 1, 9] and mnist[3][-3:].tolist() == [5, 6, 8]
    counts = torch.cat([mnist[1], mnist[3]]).bincount().tolist()
    assert counts == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]


def test_mnist_validation_does_not_hold_the_training_images_in_memory(
    mnist: tuple[torch.Tensor, ...],
) -> None:
    assert mnist[2].untyped_storage().nbytes() == 10000 * 784 * 4


def test_digits_are_split_into_1437_and_360() -> None:
    assert [tuple(part.shape) for part in get_data("digits")] == [
        (1437, 64),
        (1437,),
        (360, 64),
        (360,),
    ]


def test_digits_have_float_inputs_in_zero_to_one_and_integer_targets() -> None:
    x_train, y_train, x_valid, y_valid = get_data("digits")
    assert x_train.dtype == x_valid.dtype == torch.float32
    assert (x_train.min(), x_train.max()) == (0.0, 1.0)
    assert y_train.dtype == y_valid.dtype == torch.int64


def test_digits_are_all_there_once() -> None:
    from sklearn.datasets import load_digits

    x_train, y_train, x_valid, y_valid = get_data("digits")
    ours = torch.cat(
        [torch.cat([x_train, x_valid]) * 16, torch.cat([y_train, y_valid])[:, None]], 1
    )
    pixels, targets = load_digits(return_X_y=True)
    theirs = [(*row, target) for row, target in zip(pixels.tolist(), targets.tolist(), strict=True)]
    assert sorted(map(tuple, ours.tolist())) == sorted(theirs)


def test_both_parts_of_the_digits_hold_every_digit() -> None:
    _, y_train, _, y_valid = get_data("digits")
    assert len(y_train.unique()) == len(y_valid.unique()) == 10


def test_the_split_of_the_digits_ignores_the_global_seed() -> None:
    torch.manual_seed(1)
    first = get_data("digits")
    torch.manual_seed(2)
    second = get_data("digits")
    assert all(torch.equal(one, two) for one, two in zip(first, second, strict=True))


def test_loading_the_digits_leaves_the_global_random_state_alone() -> None:
    before = torch.get_rng_state()
    get_data("digits")
    assert torch.equal(torch.get_rng_state(), before)


def test_digits_without_scikit_learn_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.delitem(sys.modules, "sklearn.datasets", raising=False)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "eventtrain\[demo\]"'):
        get_data("digits")


def test_digits_take_no_path(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="leave out path"):
        get_data("digits", tmp_path)


def test_an_unknown_name_is_answered_with_the_nearest_one() -> None:
    with pytest.raises(DataError, match=r"no data set 'minst'.*Did you mean 'mnist'\?"):
        get_data("minst")


def test_an_unknown_name_is_a_value_error_that_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="only 'mnist' and 'digits'"):
        get_data("imagenet")
