"""The store of a run: what goes in comes out, and a part is there whole or not at all."""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from audit_kit import assert_same, assert_same_records, audit, small
from segaudit.audit.run import claim, results
from segaudit.audit.store import Store
from segaudit.types import Counts, Norms, Picture, Records, Scene, UserError


def counts(rng: np.random.Generator, n: int, classes: int) -> Counts:
    return Counts(*(rng.integers(0, 2**40, (n, classes)) for _ in range(3)))


def norms(rng: np.random.Generator, n: int) -> Norms:
    return Norms(rng.random(n), rng.random(n) * 1e-12, rng.integers(0, 10**6, n))


def rows(seed: int, n: int = 5, goal: bool = False, classes: int = 4) -> Records:
    rng = np.random.default_rng(seed)
    loss = rng.normal(size=n)
    loss[0] = np.nan
    return Records(
        ids=tuple(f"sub/image {seed} é {i}" for i in range(n)),
        counts=counts(rng, n, classes),
        rounded=counts(rng, n, classes),
        norms=norms(rng, n),
        norms_rounded=norms(rng, n),
        goal=counts(rng, n, classes) if goal else None,
        places=rng.integers(1, 10**7, n),
        loss=loss,
        forwards=rng.random(n),
        backwards=rng.random(n),
        seconds=rng.random(n),
    )


def pictures(seed: int, n: int = 3) -> list[Picture]:
    rng = np.random.default_rng(seed)
    return [
        Picture(
            f"{i}",
            rng.normal(0, 0.01, (3, 5 + i, 7)).astype(np.float16),  # images of a shard may differ in size
            rng.integers(0, 255, (5 + i, 7), dtype=np.uint8),
        )
        for i in range(n)
    ]


@pytest.fixture(params=["folder", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return Store(str(tmp_path / "run") if request.param == "folder" else f"memory://{uuid.uuid4().hex}/run")


@pytest.mark.parametrize("goal", [False, True])
@pytest.mark.parametrize("classes", [1, 21])
def test_records_come_back_exactly_in_the_order_of_the_shards(store: Store, goal: bool, classes: int) -> None:
    first, second = (rows(seed, goal=goal, classes=classes) for seed in (0, 1))
    store.write_records("key", 1, second)
    store.write_records("key", 0, first)
    assert store.parts("cells", "key") == {0, 1}
    found = store.read_records("key")
    assert found.ids == first.ids + second.ids
    assert (found.goal is None) == (not goal)
    for part, rows_of in ((first, slice(0, 5)), (second, slice(5, 10))):
        cut = Records(
            **{
                name: value
                if value is None
                else type(value)(*(getattr(value, f)[rows_of] for f in value.__slots__))
                if isinstance(value, (Counts, Norms))
                else value[rows_of]
                for name, value in ((name, getattr(found, name)) for name in Records.__slots__)
            }
        )
        assert_same_records(part, cut, skip=())


def test_pictures_and_scenes_come_back_exactly(store: Store) -> None:
    made = pictures(0)
    made[0].delta[0, 0, :3] = [np.float16(-0.0), np.float16(6e-8), np.float16(1)]
    store.write_pictures("key", 3, made)
    assert store.parts("images", "key") == {3}
    assert store.parts("cells", "key") == set()
    assert store.picture_ids("key", 3) == {"0", "1", "2"}
    for one, other in zip(made, store.read_pictures("key", 3), strict=True):
        assert one.id == other.id
        assert other.delta.dtype == np.float16
        assert one.delta.tobytes() == other.delta.tobytes()
        np.testing.assert_array_equal(one.delta, other.delta)
        np.testing.assert_array_equal(one.prediction, other.prediction)
    assert store.read_scenes() == []
    scene = Scene("a", np.arange(60, dtype=np.uint8).reshape(4, 5, 3), np.full((4, 5), 255, np.uint8))
    store.write_scenes([scene])
    (found,) = store.read_scenes()
    np.testing.assert_array_equal(found.image, scene.image)
    np.testing.assert_array_equal(found.truth, scene.truth)


def test_a_new_write_replaces_the_old_one_and_leaves_nothing_beside(store: Store) -> None:
    store.write("log.json", b"one, the longer")
    store.write("log.json", b"two")
    assert store.read("log.json") == b"two"
    assert [name.rpartition("/")[2] for name in store.files.ls(store.root, detail=False)] == ["log.json"]


def files_under(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def fail(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def half_written(self: Any, path: str, value: bytes, **_: Any) -> None:
    Path(path).write_bytes(value[: len(value) // 2])
    fail()


@pytest.mark.parametrize(("method", "how"), [("pipe_file", fail), ("pipe_file", half_written), ("mv", fail)])
def test_a_write_that_fails_leaves_no_part_and_what_was_there_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, how: Callable[..., None]
) -> None:
    store = Store(str(tmp_path / "run"))
    old = rows(0)
    store.write_records("key", 0, old)
    with monkeypatch.context() as patch:
        patch.setattr(type(store.files), method, how)
        for part in (0, 1):
            with pytest.raises(UserError, match=r"part-000\d.parquet: cannot be written \(No space left") as caught:
                store.write_records("key", part, rows(1))
            assert "what is finished is kept" in str(caught.value)
        with pytest.raises(UserError, match="cannot be written"):
            store.write_pictures("key", 0, pictures(0))
    assert files_under(tmp_path) == ["run/cells/key/part-0000.parquet"]
    assert_same_records(store.read_records("key"), old, skip=())


def test_a_place_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UserError, match=r"file/run/log.json: cannot be written"):
        Store(str(tmp_path / "file" / "run")).write("log.json", b"")
    with pytest.raises(UserError, match="nosuch://bucket/run: no such kind of place"):
        Store("nosuch://bucket/run")


def test_what_a_killed_write_left_is_no_part_and_no_hindrance(tmp_path: Path) -> None:
    spec = small(tmp_path)
    out = tmp_path / "out"
    (out / "cells" / "key").mkdir(parents=True)
    (out / "cells" / "key" / f"part-0000.parquet.{uuid.uuid4().hex}.part").write_bytes(b"PAR1")
    store = Store(str(out))
    assert store.parts("cells", "key") == set()
    with pytest.raises(UserError, match="is not empty and holds no run"):
        claim(store, spec)
    first = tmp_path / "first"
    first.mkdir()
    (first / f"plan.json.{uuid.uuid4().hex}.part").write_bytes(b'{"jobs"')
    claim(Store(str(first)), spec)


def test_a_folder_that_is_no_run_or_another_spec_s_is_refused_and_left_alone(tmp_path: Path) -> None:
    spec = small(tmp_path)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "spec.yaml").write_text("name: small\n")  # the user's own file, of this very name
    with pytest.raises(UserError, match="holds no run of segaudit"):
        audit(spec, mine)
    assert (mine / "spec.yaml").read_text() == "name: small\n"
    assert files_under(mine) == ["spec.yaml"]
    audit(spec, tmp_path / "out")
    before = files_under(tmp_path / "out")
    with pytest.raises(UserError, match="holds the run of another spec \\('small', not 'other'\\)"):
        audit(small(tmp_path, name="other"), tmp_path / "out")
    assert files_under(tmp_path / "out") == before
    for text in ("[1]", "{", ""):
        (mine / "plan.json").write_text(text)
        with pytest.raises(UserError, match="is it a run of segaudit"):
            audit(spec, mine)


def test_a_whole_run_in_memory_equals_one_in_a_folder(tmp_path: Path) -> None:
    spec = small(tmp_path, keep=True)
    place = f"memory://{uuid.uuid4().hex}/run"
    found = audit(spec, place)
    assert_same(found, audit(spec, tmp_path / "out"))
    assert_same(found, results(place))
    files = fsspec.filesystem("memory").find(place.removeprefix("memory:/"))
    assert len(files) == 4 + 2 * len(found.cells)
    assert not [name for name in files if name.endswith(".part")]


def test_what_is_no_run_has_no_results(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no plan.json; is it a run of segaudit\?"):
        results(str(tmp_path))
    with pytest.raises(UserError, match=r"there is no plan.json"):
        results(str(tmp_path / "nowhere"))
