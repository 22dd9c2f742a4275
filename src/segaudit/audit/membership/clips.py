"""Long videos and volumes cut into clips: units of a split, where whole groups would be too few."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from segaudit.types import UserError


def clips(ids_by_group: Mapping[str, Sequence[str]], length: int) -> dict[str, str]:
    """id -> the name of its clip, `GROUP/0`, `GROUP/1`, ...: runs of `length` images that follow each other.

    ids_by_group: as `Dataset.groups` gives them, each in its order. The last clip of a group may be shorter. The last
    image of a clip and the first of the next are still neighbours: the longer the clips, the fewer of these there are.
    Raises UserError for a length below 1.
    """
    if type(length) is not int or length < 1:
        raise UserError(f"membership: clip must be a whole number of images of at least 1, not {length!r}")
    return {name: f"{group}/{place // length}" for group, ids in ids_by_group.items() for place, name in enumerate(ids)}
