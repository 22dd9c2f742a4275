"""Who is trained on what: roles, halves, groups, clips, and what a split refuses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from segaudit.audit.membership.spec import Membership
from segaudit.audit.membership.split import Split, split
from segaudit.data.base import Dataset
from segaudit.types import UserError


class Names(Dataset):
    """Nothing but ids, in groups of these sizes."""

    class_names, palette = ("a", "b"), ((0, 0, 0), (1, 1, 1))

    def __init__(self, sizes: Sequence[int]) -> None:
        super().__init__(f"g{g}/{i:03d}" for g, size in enumerate(sizes) for i in range(size))
        self.single = max(sizes) == 1

    def group(self, image_id: str) -> str:
        return image_id if self.single else image_id.partition("/")[0]

    def read(self, image_id: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        raise AssertionError("a split looks at no image")


def drawn(sizes: Sequence[int], seed: int = 0, **over: Any) -> Split:
    asked = {"victim": {"source": "tiny", "name": "unet"}} | over
    return split(Names(sizes), Membership.model_validate(asked), seed)


def test_roles_share_no_image_and_cover_all_of_them() -> None:
    made = drawn([1] * 100, train_size=20, references=4)
    roles = (made.candidates, made.shadow, made.reference, made.population)
    assert [len(role) for role in roles] == [40, 40, 10, 10]
    assert len(set().union(*roles)) == 100
    assert len(made.members) == len(made.outside("victim")) == 20
    assert set(made.members) | set(made.outside("victim")) == set(made.candidates)
    assert made.inside["victim"] == made.members
    assert set(made.inside["shadow/0"]) | set(made.outside("shadow/0")) == set(made.shadow)
    assert len(made.inside["shadow/0"]) == 20


def test_each_reference_has_half_of_the_candidates_and_each_candidate_is_in_half_of_the_references() -> None:
    made = drawn([1] * 60, train_size=10, references=8, shadows=2)
    names = [name for name in made.inside if name.startswith("reference")]
    rows = np.array([[image in made.inside[name] for image in made.candidates] for name in names])
    assert rows.shape == (8, 20)
    assert (rows.sum(1) == 10).all()
    assert (rows.sum(0) == 4).all()
    assert len({row.tobytes() for row in rows}) == 8
    assert not (rows[0] & rows[1]).any()
    member = np.isin(made.candidates, made.members)
    assert not any((row == member).all() or (row != member).all() for row in rows)
    assert set(made.inside["shadow/0"]).isdisjoint(made.inside["shadow/1"])


def test_the_matrix_is_a_table_of_the_same() -> None:
    made = drawn([1] * 50, train_size=10, references=2)
    table = made.columns()
    assert len(table["id"]) == 50 == len(set(table["id"]))
    for name, ids in made.inside.items():
        assert [i for i, own in zip(table["id"], table[name], strict=True) if own] == [
            i for i in table["id"] if i in set(ids)
        ]
    assert sum(table["member"]) == 10
    told = made.told()
    assert (told["members"], told["others"], told["shadow_members"]) == (10, 10, 10)
    assert (told["reference"], told["population"]) == (5, 5)
    assert (told["unit"], told["shadows"], told["references"]) == ("image", 1, 2)


def test_it_depends_on_ids_and_seed_alone() -> None:
    one, again, other = drawn([1] * 50), drawn([1] * 50), drawn([1] * 50, seed=1)
    assert one == again
    assert one.members != other.members
    assert one.candidates != other.candidates
    data = Names([1] * 50)
    data.ids = tuple(reversed(data.ids))
    turned = split(data, Membership.model_validate({"victim": {"source": "tiny", "name": "unet"}}), 0)
    assert set(turned.members) == set(one.members)
    assert set(turned.inside["reference/3"]) == set(one.inside["reference/3"])


def test_membership_is_not_told_by_the_order_of_the_ids() -> None:
    made = drawn([1] * 400, train_size=100)
    places = np.isin(made.candidates, made.members)
    assert 35 < places[:100].sum() < 65


def test_groups_stay_whole_and_the_images_are_balanced() -> None:
    sizes = [3, 7, 2, 9, 4, 6, 5, 8, 3, 5, 7, 1, 4, 6, 2, 8, 5, 3, 9, 3]  # 100 images
    made = drawn(sizes, train_size=20, references=4)
    assert made.unit == "group"
    for own in made.inside.values():
        inside = {made.units[name] for name in own}
        assert inside.isdisjoint(made.units[name] for name in set(made.units) - set(own))
    groups = [
        {made.units[name] for name in role} for role in (made.candidates, made.shadow, made.reference, made.population)
    ]
    assert sum(len(own) for own in groups) == 20 == len(set().union(*groups))
    assert abs(len(made.members) - len(made.outside("victim"))) <= 2
    assert abs(len(made.candidates) - 40) <= 3
    assert abs(len(made.shadow) - 40) <= 3


def test_clips_are_runs_of_neighbours_in_one_group() -> None:
    made = drawn([25, 25, 30], train_size=10, clip=5, references=2)
    clips: dict[str, list[str]] = {}
    for name, unit in made.units.items():
        clips.setdefault(unit, []).append(name)
    assert sorted(map(len, clips.values())) == [5] * 16
    for names in clips.values():
        numbers = [int(name.partition("/")[2]) for name in names]
        assert numbers == list(range(numbers[0], numbers[0] + 5))
        assert len({name in made.members for name in names}) == 1
    assert len(made.members) == 10


def test_order_takes_the_first_of_each_half_as_they_lie() -> None:
    data = Names([1] * 20)
    made = drawn([1] * 20, train_size=4, unit="order", references=2)
    assert made.members == data.ids[:4]
    assert made.outside("victim") == data.ids[4:8]
    assert made.inside["shadow/0"] == data.ids[10:14]
    assert made.outside("shadow/0") == data.ids[14:18]
    assert {*made.reference, *made.population} == {*data.ids[8:10], *data.ids[18:]}


def test_shuffled_membership_is_of_images_that_the_victim_never_saw() -> None:
    made = drawn([1] * 60, train_size=10, shuffled=True, references=2)
    assert set(made.inside["victim"]).isdisjoint(made.candidates)
    assert set(made.inside["victim"]).isdisjoint(made.shadow)
    assert len(made.inside["victim"]) == len(made.members) == 10
    assert set(made.members) < set(made.candidates)
    assert len(made.reference) == len(made.population) == 5


@pytest.mark.parametrize(
    ("sizes", "over", "said"),
    [
        ([1] * 30, {"train_size": 10}, "train_size 10 takes 40 images (4 times as many), and the data have 30"),
        ([1] * 3, {}, "there are 3 images, too few"),
        ([1] * 9, {}, "there are 9 images, too few to be split; it takes 10"),
        ([50, 50], {"train_size": 10}, "groups are too few or too large"),
        ([1] * 50, {"clip": 4}, "clip cuts groups, but every image of this data set stands alone"),
        ([10, 10, 80], {"train_size": 10, "clip": 40}, "give a smaller clip"),
    ],
)
def test_too_few_images_or_groups_are_one_line(sizes: list[int], over: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        drawn(sizes, **over)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_usual_size_leaves_a_population() -> None:
    assert len(drawn([1] * 100).members) == 20
    assert len(drawn([1] * 100).population) == len(drawn([1] * 100).reference) == 10
    assert len(drawn([1] * 90, shadows=0).members) == 30
    assert drawn([1] * 90, shadows=0).shadow == ()
