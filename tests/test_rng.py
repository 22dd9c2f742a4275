"""One stream an image: nothing but seed, id and purpose decides what is drawn."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from segaudit.rng import ImageStreams

IDS = ("a", "b", "c", "d")


def like(count: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(count, 3, 4, 5, dtype=dtype)


def all_draws(rng: ImageStreams, count: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [rng.uniform(like(count, dtype), -2, 3), rng.normal(like(count, dtype)), rng.integers(1000)]


def test_an_image_draws_the_same_numbers_in_any_batch() -> None:
    together = all_draws(ImageStreams(5, IDS, "x"), 4)
    for i, name in enumerate(IDS):
        for own, batch in zip(all_draws(ImageStreams(5, (name,), "x"), 1), together, strict=True):
            assert torch.equal(own[0], batch[i])
    for own, batch in zip(all_draws(ImageStreams(5, IDS[::-1], "x"), 4), together, strict=True):
        assert torch.equal(own.flip(0), batch)


def test_seed_id_and_purpose_each_give_other_numbers() -> None:
    draws = {
        (seed, name, purpose): ImageStreams(seed, (name,), purpose).normal(like(1))
        for seed in (0, 1, 11)
        for name in ("a", "b", "1a")
        for purpose in ("", "x", "x/y")
    }
    assert len({tuple(numbers.flatten().tolist()) for numbers in draws.values()}) == 27


def test_a_child_is_fresh_whatever_was_drawn_before() -> None:
    parent = ImageStreams(0, IDS, "pgd")
    first = parent.child("restart0").normal(like(4))
    parent.normal(like(4))
    assert torch.equal(parent.child("restart0").normal(like(4)), first)
    assert torch.equal(ImageStreams(0, IDS, "pgd/restart0").normal(like(4)), first)
    assert not torch.equal(parent.child("restart1").normal(like(4)), first)
    assert not torch.equal(ImageStreams(0, IDS, "pgd").normal(like(4)), first)
    rows = torch.tensor([2, 0])
    assert torch.equal(parent[rows].child("restart0").normal(like(2)), first[rows])


@pytest.mark.parametrize("rows", [torch.tensor([False, True, True, False]), torch.tensor([1, 2])])
def test_the_streams_of_chosen_images_go_on(rows: Tensor) -> None:
    plain, split = ImageStreams(0, IDS), ImageStreams(0, IDS)
    first, second, third = (plain.normal(like(4)) for _ in range(3))
    assert torch.equal(split.normal(like(4)), first)
    assert torch.equal(split[rows].normal(like(2)), second[1:3])
    both = split.normal(like(4))  # the images left out are still at their second draw
    assert torch.equal(both[[1, 2]], third[[1, 2]])
    assert torch.equal(both[[0, 3]], second[[0, 3]])


def test_no_image_chosen_draws_nothing() -> None:
    none = ImageStreams(0, IDS)[torch.zeros(4, dtype=torch.bool)]
    assert none.uniform(like(0)).shape == none.normal(like(0)).shape == (0, 3, 4, 5)
    assert none.integers(9).shape == (0,)
    assert none.integers(9).dtype == torch.int64


def test_the_type_rounds_the_numbers_and_changes_none() -> None:
    single, double = (all_draws(ImageStreams(0, IDS), 4, dtype) for dtype in (torch.float32, torch.float64))
    for a, b in zip(single[:2], double[:2], strict=True):
        assert (a.dtype, b.dtype) == (torch.float32, torch.float64)
        torch.testing.assert_close(a.double(), b, rtol=0, atol=1e-6)
    assert torch.equal(single[2], double[2])
    last = like(4).contiguous(memory_format=torch.channels_last)
    assert torch.equal(ImageStreams(0, IDS).uniform(last, -2, 3), single[0])


def test_the_numbers_are_of_their_distributions() -> None:
    rng, many = ImageStreams(0, ("a",)), torch.empty(1, 20000)
    uniform, normal = rng.uniform(many, -2, 3), rng.normal(many)
    assert uniform.min() >= -2
    assert uniform.max() < 3
    assert abs(uniform.mean() - 0.5) < 0.03
    assert abs(uniform.std() - 5 / 12**0.5) < 0.03
    assert abs(normal.mean()) < 0.03
    assert abs(normal.std() - 1) < 0.03
    whole = torch.cat([rng.integers(3) for _ in range(300)])
    assert whole.bincount().min() > 60
    assert set(whole.tolist()) == {0, 1, 2}


def test_the_streams_leave_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    all_draws(ImageStreams(0, IDS), 4)
    assert torch.equal(torch.get_rng_state(), before)


def test_as_many_rows_as_streams() -> None:
    with pytest.raises(ValueError, match="4 streams for 3 images"):
        ImageStreams(0, IDS).normal(like(3))


def test_the_streams_are_those_of_the_first_day() -> None:
    """A change here changes every published number: raise `audit.plan.VERSION`."""
    rng = ImageStreams(0, ("0001TP_008550", "b"), "pgd").child("restart0")
    golden = torch.tensor([[5457837, 3800735], [2557093, 14277598]]) / 2**24
    assert torch.equal(rng.uniform(torch.empty(2, 2)), golden)
    assert rng.integers(10**6).tolist() == [775663, 462465]
    expected = torch.tensor([[-0.6228004], [-0.7893561]])
    torch.testing.assert_close(rng.normal(torch.empty(2, 1)), expected, rtol=0, atol=1e-6)
