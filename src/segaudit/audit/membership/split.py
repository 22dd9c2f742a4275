"""Who is trained on what: the roles of the images, and a row of memberships for each network."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from segaudit.audit.membership.clips import clips
from segaudit.audit.membership.spec import LEAST_SIZE, Membership
from segaudit.data.base import Dataset
from segaudit.types import UserError

VICTIM, SHADOW, REFERENCE = "victim", "shadow", "reference"
"""What networks are called; the last two with a number, as `shadow/0`."""

LEAST = {"candidates": 4, "members": 2, "others": 2, "own": 1, "shadow": 2}
"""Units that a role must have: of candidates two on either side, so that some can be learnt from and others tried."""


class Known(NamedTuple):
    """What victims that were trained elsewhere saw. ids: in the pool. groups: in which there are images of it."""

    ids: tuple[str, ...]
    groups: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Split:
    """The images of an experiment, each list in the order of the data set.

    candidates: half of them are members. members: those, which the victim was trained on unless they were only drawn.
    own: what the victim was trained on in that case. shadow: the attacker's half of the data. reference, population:
    the rest, halved: what a defense may learn from besides, and what no network is trained on. units: image -> what it
    is in or out with. inside: network -> the images it is trained on. given: the victim was trained elsewhere, on the
    members and perhaps on images that have no role here.
    """

    unit: str
    candidates: tuple[str, ...]
    members: tuple[str, ...]
    own: tuple[str, ...]
    shadow: tuple[str, ...]
    reference: tuple[str, ...]
    population: tuple[str, ...]
    units: Mapping[str, str]
    inside: Mapping[str, tuple[str, ...]]
    given: bool = False

    @property
    def ids(self) -> tuple[str, ...]:
        """All images that have a role."""
        return self.candidates + self.own + self.shadow + self.reference + self.population

    def outside(self, network: str) -> tuple[str, ...]:
        """As many images like those that a network is trained on, which it is not."""
        pool = self.shadow if network.startswith(SHADOW) else self.candidates
        known = set(self.members if network == VICTIM else self.inside[network])
        return tuple(name for name in pool if name not in known)

    def columns(self) -> dict[str, list[Any]]:
        """As a table: a row an image, a column of booleans for each network."""
        roles = dict.fromkeys(self.candidates, "candidate") | dict.fromkeys(self.own, "own")
        roles |= dict.fromkeys(self.shadow, "shadow") | dict.fromkeys(self.reference, "reference")
        roles |= dict.fromkeys(self.population, "population")
        drawn, rows = set(self.members), {name: set(ids) for name, ids in self.inside.items()}
        table: dict[str, list[Any]] = {"id": list(roles), "role": list(roles.values())}
        table |= {"unit": [self.units[name] for name in roles], "member": [name in drawn for name in roles]}
        return table | {network: [name in row for name in roles] for network, row in rows.items()}

    def told(self) -> dict[str, Any]:
        """What a page says of it: numbers and words."""
        first = self.inside.get(f"{SHADOW}/0", ())
        networks = [name.partition("/")[0] for name in self.inside]
        return {
            "unit": self.unit,
            "units": len({self.units[name] for name in self.candidates}),
            "members": len(self.members),
            "others": len(self.candidates) - len(self.members),
            "shadow_members": len(first),
            "reference": len(self.reference),
            "population": len(self.population),
            "shadows": networks.count(SHADOW),
            "references": networks.count(REFERENCE),
        } | ({"victims": "as they were given"} if self.given else {})


def split(data: Dataset, asked: Membership, seed: int, known: Known | None = None) -> Split:
    """The split of a data set; it depends on the ids, the groups and the seed alone.

    known: of victims that were trained elsewhere. Raises UserError where there are too few images or groups.
    """
    units, unit = _units(data, asked)
    if known is not None:
        found = _beside(data.ids, units, known, asked, seed)
        members = found["members"]
    elif unit == "order":
        found = _in_order(data.ids, asked)
        members = found["candidates"][: len(found["candidates"]) // 2]
    else:
        found = _drawn(data.ids, units, asked, seed)
        members = _half(found["candidates"], units, seed, "members", level=True)
    candidates, shadow, own = found["candidates"], found["shadow"], found.get("own", ())
    inside = {VICTIM: own or members}
    for number in range(asked.shadows):
        drawn = _paired(shadow, units, seed, SHADOW, number)
        inside[f"{SHADOW}/{number}"] = shadow[: len(members)] if unit == "order" and not number else drawn
    for number in range(asked.references):
        inside[f"{REFERENCE}/{number}"] = _paired(candidates, units, seed, REFERENCE, number)
    reference = _half(found[""], units, seed, "rest", level=True)
    population = _without(found[""], set(reference))
    return Split(unit, candidates, members, own, shadow, reference, population, units, inside, known is not None)


def _units(data: Dataset, asked: Membership) -> tuple[dict[str, str], str]:
    """image -> its unit, and what the units are."""
    groups = data.groups()
    several = len(groups) < len(data.ids)
    unit = asked.unit or ("group" if several else "image")
    if asked.clip is not None and not several:
        raise UserError("membership: clip cuts groups, but every image of this data set stands alone; leave it out")
    if unit != "group":
        return {name: name for name in data.ids}, unit
    if asked.clip is None:
        return {name: group for group, names in groups.items() for name in names}, unit
    return clips(groups, asked.clip), unit


def _size(count: int, asked: Membership) -> tuple[int, int]:
    """How many members there are, and of how many parts of twice as many the pool is."""
    parts = asked.parts
    size = asked.train_size or count // (parts + 1)
    if count < LEAST_SIZE * parts or (asked.train_size is None and size < LEAST_SIZE):
        least = parts + (asked.train_size is None)
        raise UserError(f"membership: there are {count} images, too few to be split; it takes {LEAST_SIZE * least}")
    if parts * size > count:
        raise UserError(
            f"membership: train_size {size} takes {parts * size} images ({parts} times as many), and the data "
            f"have {count}; give at most {count // parts}, or more data"
        )
    return size, 2 if asked.shadows else 1


def _in_order(ids: Sequence[str], asked: Membership) -> dict[str, tuple[str, ...]]:
    """role -> images, as they lie: the members first, and the attacker's in the second half."""
    size, pools = _size(len(ids), asked)
    half = len(ids) // pools
    candidates, shadow = tuple(ids[: 2 * size]), tuple(ids[half : half + 2 * size * (asked.shadows > 0)])
    return {"candidates": candidates, "shadow": shadow, "": _without(ids, {*candidates, *shadow})}


def _drawn(ids: Sequence[str], units: Mapping[str, str], asked: Membership, seed: int) -> dict[str, tuple[str, ...]]:
    """role -> images, drawn."""
    size, _ = _size(len(ids), asked)
    wanted = {"candidates": 2 * size, "own": size * asked.shuffled, "shadow": 2 * size * (asked.shadows > 0)}
    found = _roles(ids, units, wanted, seed)
    _check(found, wanted, units, asked)
    return found


def _beside(
    ids: Sequence[str], units: Mapping[str, str], seen: Known, asked: Membership, seed: int
) -> dict[str, tuple[str, ...]]:
    """role -> images, where the members are among the known ones, and nothing else is or shares a unit with them."""
    known, touched = seen.ids, {units[name] for name in seen.ids} | seen.groups
    free = tuple(name for name in ids if units[name] not in touched)
    parts = 1 + 2 * (asked.shadows > 0)
    size = asked.train_size or min(len(known), len(free) // (parts + 1))
    if size > len(known) or parts * size > len(free) or size < LEAST_SIZE:
        most = min(len(known), len(free) // parts)
        raise UserError(
            f"membership: {max(size, LEAST_SIZE)} members take {parts * max(size, LEAST_SIZE)} other images, and there "
            f"are {len(known)} and {len(free)}; give "
            + (f"a train_size of at most {most}, or more data" if most >= LEAST_SIZE else "more data")
        )
    inside, outside = {"members": size}, {"others": size, "shadow": 2 * size * (asked.shadows > 0)}
    among = _roles(known, units, inside, seed)
    found = _roles(free, units, outside, seed) | {"members": among["members"]}
    _check(found, inside | outside, units, asked)
    candidates = {*found["members"], *found["others"]}
    return found | {"candidates": tuple(name for name in ids if name in candidates)}


def _without(ids: Sequence[str], names: Collection[str]) -> tuple[str, ...]:
    return tuple(name for name in ids if name not in names)


def _roles(
    ids: Sequence[str], units: Mapping[str, str], wanted: Mapping[str, int], seed: int
) -> dict[str, tuple[str, ...]]:
    """role -> images, and those without one: whole units, the largest first, each to the role that lacks the most."""
    lacking = {role: count for role, count in wanted.items() if count}
    lacking[""] = len(ids) - sum(lacking.values())
    given = {}
    for unit, size in _by_size({name: units[name] for name in ids}, seed, "roles"):
        role = max(lacking, key=lambda role: (lacking[role], _number(seed, role, unit)))
        lacking[role] -= size
        given[unit] = role
    return {role: tuple(name for name in ids if given[units[name]] == role) for role in (*wanted, "")}


def _check(
    found: Mapping[str, Sequence[str]], wanted: Mapping[str, int], units: Mapping[str, str], asked: Membership
) -> None:
    for role in (role for role, count in wanted.items() if count):
        several = len({units[name] for name in found[role]}) >= LEAST[role]
        if not several or 2 * abs(len(found[role]) - wanted[role]) > wanted[role]:
            mend = "a smaller clip" if asked.clip else "clip (runs of so many images)"
            raise UserError(
                f"membership: the groups are too few or too large: of {wanted[role]} images that are wanted as "
                f"{role}, {len(found[role])} come of {len(set(units.values()))} groups; give {mend}, another "
                "train_size, or `unit: image`"
            )


def _half(
    ids: Sequence[str], units: Mapping[str, str], seed: int, purpose: str, level: bool = False
) -> tuple[str, ...]:
    """The images of half of the units, drawn among pairs of like size; level: what keeps the images halved."""
    inside, ahead = set(), 0
    ordered = _by_size({name: units[name] for name in ids}, seed, purpose)
    for i in range(0, len(ordered), 2):
        pair = [*ordered[i : i + 2], ("", 0)][:2]
        first = _number(seed, purpose, "coin", pair[0][0]) % 2
        if level and ahead and pair[0][1] != pair[1][1]:
            first = int(ahead > 0)  # the larger goes where there is less
        inside.add(pair[first][0])
        ahead += pair[first][1] - pair[1 - first][1]
    return tuple(name for name in ids if units[name] in inside)


def _paired(ids: Sequence[str], units: Mapping[str, str], seed: int, purpose: str, number: int) -> tuple[str, ...]:
    """The half of an even number, and the rest of it for the next one: so each image is in equally often."""
    drawn = _half(ids, units, seed, f"{purpose}/{number // 2}")
    if number % 2 == 0:
        return drawn
    known = set(drawn)
    return tuple(name for name in ids if name not in known)


def _by_size(units: Mapping[str, str], seed: int, purpose: str) -> list[tuple[str, int]]:
    """(unit, its images), the largest first, those of one size in an order that is drawn."""
    sizes: dict[str, int] = {}
    for unit in units.values():
        sizes[unit] = sizes.get(unit, 0) + 1
    return sorted(sizes.items(), key=lambda own: (-own[1], _number(seed, purpose, own[0])))


def _number(seed: int, *words: str) -> int:
    return int.from_bytes(hashlib.sha256("\0".join([str(seed), *words]).encode()).digest()[:8], "little")


def seed_of(seed: int, *words: str) -> int:
    """A seed for one purpose, below 2^31."""
    return _number(seed, *words) % 2**31
