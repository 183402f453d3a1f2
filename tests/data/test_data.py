from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from eventtrain.data import DataBunch, Dataset, TensorLoader, get_dls
from eventtrain.errors import DataError, EmptyLoaderError

META = torch.device("meta")


def rows(n: int) -> tuple[Tensor, Tensor]:
    """Rows that carry their own index, so that mixing x with another's y shows."""
    x = torch.arange(float(n))[:, None].repeat(1, 3)
    return x, torch.arange(n)


def order(loader: TensorLoader) -> list[int]:
    return [int(y) for _, yb in loader for y in yb]


class Stream(IterableDataset):
    def __iter__(self) -> Iterator[Tensor]:
        return iter(torch.arange(10))


class Doubled(Dataset):
    def __getitem__(self, index: Any) -> Any:
        x, y = super().__getitem__(index)
        return x * 2, y


# --- Dataset -----------------------------------------------------------------


def test_a_dataset_gives_an_item_and_its_target() -> None:
    x, y = Dataset(*rows(5))[3]
    assert x.tolist() == [3.0, 3.0, 3.0] and y == 3


@pytest.mark.parametrize("index", [slice(1, 3), torch.tensor([1, 2])])
def test_a_dataset_takes_slices_and_index_tensors(index: Any) -> None:
    x, y = Dataset(*rows(5))[index]
    assert x.shape == (2, 3) and y.tolist() == [1, 2]


def test_a_dataset_keeps_what_it_was_given() -> None:
    x, y = rows(5)
    ds = Dataset(x, y)
    assert ds.x is x and ds.y is y and len(ds) == 5


def test_a_dataset_of_lists_is_indexed_like_them() -> None:
    assert Dataset(["a", "b"], [0, 1])[1] == ("b", 1)


def test_a_dataset_without_targets_gives_bare_items() -> None:
    assert Dataset(["a", "b"])[1] == "b"


def test_iterating_a_dataset_ends_at_its_length() -> None:
    assert [y.item() for _, y in Dataset(*rows(4))] == [0, 1, 2, 3]


def test_a_dataset_of_unequal_lengths_names_both() -> None:
    with pytest.raises(DataError, match="x holds 5 items and y holds 4"):
        Dataset(torch.zeros(5, 2), torch.zeros(4))


def test_a_dataset_shows_its_shapes() -> None:
    assert repr(Dataset(*rows(5))) == "Dataset(x=[5, 3], y=[5])"


def test_a_dataset_of_lists_shows_types_and_lengths() -> None:
    assert repr(Dataset(["a"], None)) == "Dataset(x=list[1], y=None)"


# --- TensorLoader ------------------------------------------------------------

loaders = st.fixed_dictionaries(
    {
        "n": st.integers(1, 700),
        "bs": st.integers(1, 70) | st.just(10_000),
        "shuffle": st.booleans(),
        "drop_last": st.booleans(),
    }
).filter(lambda c: not c["drop_last"] or c["n"] >= c["bs"])


@given(case=loaders, seed=st.integers(0, 2**32))
def test_every_row_is_served_at_most_once_and_only_a_dropped_rest_is_missing(
    case: dict[str, Any], seed: int
) -> None:
    n, bs, drop_last = case["n"], case["bs"], case["drop_last"]
    generator = torch.Generator().manual_seed(seed)
    loader = TensorLoader(*rows(n), bs, case["shuffle"], generator, drop_last)
    for _ in range(2):
        batches = list(loader)
        seen = torch.cat([yb for _, yb in batches])
        sizes = [len(yb) for _, yb in batches]
        assert len(seen.unique()) == len(seen) == (n // bs * bs if drop_last else n)
        assert sizes[:-1] == [bs] * (len(sizes) - 1)
        assert all(torch.equal(xb[:, 0].long(), yb) for xb, yb in batches)


@given(case=loaders)
def test_len_is_the_number_of_batches_served(case: dict[str, Any]) -> None:
    loader = TensorLoader(
        *rows(case["n"]), case["bs"], case["shuffle"], drop_last=case["drop_last"]
    )
    assert len(loader) == sum(1 for _ in loader)


@given(n=st.integers(2, 200), bs=st.integers(1, 50), seed=st.integers(0, 2**32))
def test_one_seed_gives_one_order_of_epochs(n: int, bs: int, seed: int) -> None:
    one, two = (
        TensorLoader(*rows(n), bs, True, torch.Generator().manual_seed(seed)) for _ in range(2)
    )
    assert [order(one), order(one)] == [order(two), order(two)]


@pytest.mark.parametrize("bs", [1, 2, 3])
def test_more_batches_than_are_cut_at_once_come_in_order_and_full(bs: int) -> None:
    batches = [yb.tolist() for _, yb in TensorLoader(*rows(1000), bs)]
    assert batches == [list(range(at, min(at + bs, 1000))) for at in range(0, 1000, bs)]


def test_a_short_last_batch_is_served() -> None:
    assert [len(yb) for _, yb in TensorLoader(*rows(10), bs=4)] == [4, 4, 2]


def test_a_short_last_batch_is_dropped_on_demand() -> None:
    loader = TensorLoader(*rows(10), bs=4, drop_last=True)
    assert [len(yb) for _, yb in loader] == [4, 4]


def test_an_unshuffled_loader_keeps_the_order() -> None:
    assert order(TensorLoader(*rows(10), bs=3)) == list(range(10))


def test_two_shuffled_epochs_differ() -> None:
    loader = TensorLoader(*rows(100), bs=10, shuffle=True)
    assert order(loader) != order(loader)


def test_a_new_iterator_starts_over() -> None:
    loader = TensorLoader(*rows(10), bs=4)
    next(iter(loader))
    assert next(iter(loader))[1].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("shuffle", [False, True])
def test_two_iterators_at_a_time_are_independent(shuffle: bool) -> None:
    loader = TensorLoader(*rows(50), 7, shuffle)
    both = list(zip(iter(loader), iter(loader), strict=True))
    for side in (0, 1):
        assert sorted(torch.cat([pair[side][1] for pair in both]).tolist()) == list(range(50))


def test_a_shuffled_epoch_is_the_permutation_its_generator_draws() -> None:
    loader = TensorLoader(*rows(30), 4, True, torch.Generator().manual_seed(7))
    expected = torch.randperm(30, generator=torch.Generator().manual_seed(7))
    assert order(loader) == expected.tolist()


def test_the_order_is_drawn_on_the_cpu_for_data_on_another_device() -> None:
    torch.manual_seed(3)
    list(TensorLoader(torch.zeros(30, device="meta"), bs=4, shuffle=True))
    drawn = torch.get_rng_state()
    torch.manual_seed(3)
    torch.randperm(30)
    assert torch.equal(torch.get_rng_state(), drawn)


def test_without_a_generator_the_global_seed_decides() -> None:
    loader = TensorLoader(*rows(30), 4, True)
    torch.manual_seed(3)
    first = order(loader)
    torch.manual_seed(3)
    assert order(loader) == first


def test_an_own_generator_leaves_the_global_one_alone() -> None:
    before = torch.get_rng_state()
    order(TensorLoader(*rows(30), 4, True, torch.Generator()))
    assert torch.equal(torch.get_rng_state(), before)


def test_an_unshuffled_epoch_draws_no_random_number() -> None:
    before = torch.get_rng_state()
    order(TensorLoader(*rows(30), 4))
    assert torch.equal(torch.get_rng_state(), before)


def test_unshuffled_batches_are_views() -> None:
    x, y = rows(10)
    xb, yb = next(iter(TensorLoader(x, y, 4)))
    assert xb.data_ptr() == x.data_ptr() and yb.data_ptr() == y.data_ptr()


def test_changing_a_shuffled_batch_leaves_the_data_alone() -> None:
    x, y = rows(10)
    for xb, _ in TensorLoader(x, y, 4, shuffle=True):
        xb.fill_(-1)
    assert torch.equal(x, rows(10)[0])


@pytest.mark.parametrize("shuffle", [False, True])
def test_without_targets_batches_are_bare_tensors(shuffle: bool) -> None:
    batches = list(TensorLoader(torch.arange(10), bs=4, shuffle=shuffle))
    assert all(isinstance(xb, Tensor) for xb in batches)
    assert sorted(torch.cat(batches).tolist()) == list(range(10))


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.float16, torch.bfloat16])
def test_shape_and_dtype_are_kept(dtype: torch.dtype, shuffle: bool) -> None:
    x = torch.zeros(10, 2, 3, 4, dtype=dtype)
    xb, _ = next(iter(TensorLoader(x, torch.zeros(10), 4, shuffle)))
    assert xb.shape == (4, 2, 3, 4) and xb.dtype == dtype


@pytest.mark.parametrize("shuffle", [False, True])
def test_batches_stay_on_the_device_of_the_data(shuffle: bool) -> None:
    x = torch.zeros(10, 2, device="meta")
    batches = list(TensorLoader(x, x, 4, shuffle))
    assert [xb.device for xb, _ in batches] == [META] * 3


@pytest.mark.parametrize("shuffle", [False, True])
def test_an_epoch_makes_the_host_wait_for_nothing(shuffle: bool, no_sync: Any) -> None:
    loader = TensorLoader(*rows(100), 7, shuffle)
    with no_sync:
        assert sum(len(xb) for xb, _ in loader) == 100


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("shuffle", [False, True])
def test_an_epoch_on_a_gpu_does_not_synchronise(
    shuffle: bool, sync_debug_mode: Callable[[str], None]
) -> None:
    loader = TensorLoader(*(part.cuda() for part in rows(100)), 7, shuffle)
    sync_debug_mode("error")
    batches = list(loader)
    sync_debug_mode("default")
    assert sorted(torch.cat([yb for _, yb in batches]).tolist()) == list(range(100))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_generator_on_a_gpu_is_refused() -> None:
    with pytest.raises(ValueError, match="drawn on the CPU"):
        TensorLoader(*rows(4), generator=torch.Generator("cuda"))


def test_a_changed_batch_size_counts_from_the_next_epoch() -> None:
    loader = TensorLoader(*rows(10), bs=4)
    loader.batch_size = 5
    assert [len(yb) for _, yb in loader] == [5, 5] and len(loader) == 2


def test_a_loader_made_of_a_dataset_keeps_it() -> None:
    ds = Dataset(*rows(10))
    loader = TensorLoader.of(ds, 4, drop_last=True)
    assert loader.dataset is ds and len(loader) == 2


def test_a_loader_made_of_tensors_has_a_dataset() -> None:
    x, y = rows(10)
    ds = TensorLoader(x, y).dataset
    assert ds.x is x and ds.y is y


def test_a_numpy_integer_serves_as_batch_size() -> None:
    assert len(TensorLoader(*rows(10), bs=np.int64(4))) == 3


@pytest.mark.parametrize("bs", [0, -3])
def test_a_batch_size_below_one_is_refused(bs: int) -> None:
    with pytest.raises(ValueError, match=f"batch size must be at least 1, got {bs}"):
        TensorLoader(*rows(10), bs=bs)


@pytest.mark.parametrize("bs", [True, 2.0, "8", None, torch.tensor(4)])
def test_a_batch_size_that_is_no_integer_is_refused(bs: Any) -> None:
    with pytest.raises(TypeError, match="batch size must be a whole number"):
        TensorLoader(*rows(10), bs=bs)


def test_inputs_that_are_no_tensor_are_refused() -> None:
    with pytest.raises(TypeError, match="x must be a tensor, not list"):
        TensorLoader([1, 2])


def test_targets_that_are_no_tensor_are_refused() -> None:
    with pytest.raises(TypeError, match="y must be a tensor, not ndarray"):
        TensorLoader(torch.zeros(2), np.zeros(2))


def test_a_tensor_without_dimensions_is_refused() -> None:
    with pytest.raises(DataError, match="x is a single number"):
        TensorLoader(torch.tensor(1.0))


def test_unequal_lengths_are_refused() -> None:
    with pytest.raises(DataError, match="x holds 5 items and y holds 4"):
        TensorLoader(torch.zeros(5), torch.zeros(4))


def test_tensors_on_two_devices_are_refused() -> None:
    with pytest.raises(DataError, match="x is on cpu, y on meta"):
        TensorLoader(torch.zeros(5), torch.zeros(5, device="meta"))


def test_no_rows_at_all_are_refused() -> None:
    with pytest.raises(EmptyLoaderError, match="0 rows make no batch"):
        TensorLoader(torch.zeros(0, 3), torch.zeros(0))


def test_too_few_rows_for_one_full_batch_are_refused_with_drop_last() -> None:
    with pytest.raises(EmptyLoaderError, match="3 rows make no full batch of 4"):
        TensorLoader(torch.zeros(3), bs=4, drop_last=True)


def test_a_loader_shows_data_and_settings() -> None:
    shown = repr(TensorLoader(*rows(5), bs=2, shuffle=True))
    assert shown == "TensorLoader(Dataset(x=[5, 3], y=[5]), bs=2, shuffle=True)"


# --- DataBunch ---------------------------------------------------------------


def test_a_bunch_finds_the_datasets_of_its_loaders() -> None:
    train, valid = Dataset(*rows(8)), Dataset(*rows(4))
    data = DataBunch(*get_dls(train, valid), c=10)
    assert data.train_ds is train and data.valid_ds is valid and data.c == 10


def test_a_bunch_without_validation_has_no_validation_data() -> None:
    assert DataBunch([1]).valid_ds is None


def test_a_bunch_follows_a_loader_that_is_replaced() -> None:
    data = DataBunch(TensorLoader(*rows(8)))
    data.train_dl = TensorLoader(*rows(3))
    assert len(data.train_ds) == 3


@pytest.mark.parametrize("which", ["train", "valid"])
def test_a_loader_without_dataset_is_named(which: str) -> None:
    data = DataBunch([1], [2])
    with pytest.raises(
        AttributeError, match=rf"{which} loader \(list\) has no attribute 'dataset'"
    ):
        getattr(data, f"{which}_ds")


# --- get_dls -----------------------------------------------------------------


def test_only_training_is_shuffled() -> None:
    train_dl, valid_dl = get_dls(Dataset(*rows(100)), Dataset(*rows(100)), 8)
    assert order(train_dl) != list(range(100)) and order(valid_dl) == list(range(100))


def test_validation_batches_are_twice_as_large() -> None:
    train_dl, valid_dl = get_dls(Dataset(*rows(100)), Dataset(*rows(100)), 8)
    assert (train_dl.batch_size, valid_dl.batch_size) == (8, 16)


def test_the_default_batch_size_is_64() -> None:
    assert get_dls(Dataset(*rows(4)), None)[0].batch_size == 64


def test_no_validation_data_gives_no_validation_loader() -> None:
    assert get_dls(Dataset(*rows(4)), None)[1] is None


def test_generator_and_drop_last_go_to_training_only() -> None:
    generator = torch.Generator()
    ds = Dataset(*rows(10))
    train_dl, valid_dl = get_dls(ds, ds, 4, generator=generator, drop_last=True)
    assert train_dl.generator is generator and valid_dl.generator is None
    assert (len(train_dl), len(valid_dl)) == (2, 2)


def test_a_tensor_dataset_gets_the_fast_loader() -> None:
    x, y = rows(10)
    train_dl, _ = get_dls(TensorDataset(x, y), None, 4)
    assert type(train_dl) is TensorLoader and train_dl.dataset.x is x and train_dl.dataset.y is y


@pytest.mark.parametrize(
    "ds",
    [
        Dataset([1.0, 2.0], [0, 1]),
        Doubled(*rows(2)),
        TensorDataset(*rows(2), torch.zeros(2)),
        [(torch.zeros(3), 0)] * 2,
    ],
    ids=["lists", "subclass", "three tensors", "list of pairs"],
)
def test_other_data_gets_a_torch_loader(ds: Any) -> None:
    train_dl, valid_dl = get_dls(ds, ds, 2)
    assert type(train_dl) is DataLoader and type(valid_dl) is DataLoader
    assert train_dl.dataset is ds and valid_dl.batch_size == 4


def test_a_subclass_that_transforms_its_items_is_obeyed() -> None:
    _, valid_dl = get_dls(Doubled(*rows(4)), Doubled(*rows(4)), 2)
    assert [xb[:, 0].tolist() for xb, _ in valid_dl] == [[0.0, 2.0, 4.0, 6.0]]


def test_options_of_torch_are_passed_to_both_loaders() -> None:
    def collate(items: list[Any]) -> int:
        return len(items)

    ds = Dataset(*rows(10))
    train_dl, valid_dl = get_dls(ds, ds, 4, collate_fn=collate, drop_last=True)
    assert (list(train_dl), list(valid_dl)) == ([4, 4], [8, 2])


def test_an_iterable_dataset_keeps_its_own_order() -> None:
    train_dl, _ = get_dls(Stream(), None, 4)
    assert torch.cat(list(train_dl)).tolist() == list(range(10))


@pytest.mark.parametrize("option", ["shuffle", "batch_sampler", "sampler"])
def test_order_and_batch_size_are_not_options(option: str) -> None:
    with pytest.raises(TypeError, match=f"for {option} make the loaders yourself"):
        get_dls(Dataset(*rows(4)), None, **{option: 1})


def test_two_tensors_of_one_form_are_two_data_sets() -> None:
    train_dl, valid_dl = get_dls(torch.zeros(8, 2), torch.zeros(4, 2), 4)
    assert [len(xb) for xb in train_dl] == [4, 4]
    assert [len(xb) for xb in valid_dl] == [4]
