"""The store of a run: a folder, a network share or a bucket, where a part appears whole or not at all.

`spec.yaml`, `plan.json`, `log.json`, `cells/KEY/part-NNNN.parquet`, `images/KEY/part-NNNN.parquet`,
`images/scenes.parquet`, `fits/KEY.safetensors`, `scaling/KEY.json`, `report/index.html`.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import uuid
from collections.abc import Sequence
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load, save
from torch import Tensor

from segaudit.types import Counts, Floats, Norms, Picture, Records, Scene, UserError, Votes

ASIDE = ".part"
"""How the name ends of a file that is being written."""
COUNTS = ("intersection", "union", "target")
NORMS = ("linf", "l2", "l0")
SINGLES = ("places", "loss", "forwards", "backwards", "seconds")
VOTES = ("label", "class", "votes", "pixels")


class Store:
    """A run's files, by any fsspec path."""

    def __init__(self, path: str) -> None:
        self.path = str(path)
        try:
            self.files, self.root = fsspec.core.url_to_fs(self.path)
        except (ValueError, ImportError) as error:
            raise UserError(f"{path}: no such kind of place can be used ({error})") from error

    def has(self, name: str) -> bool:
        """Whether a file is there."""
        return bool(self.files.exists(f"{self.root}/{name}"))

    def empty(self) -> bool:
        """Whether there is nothing at the path yet, but for what a write that was killed has left."""
        return not self.files.exists(self.root) or all(
            name.endswith(ASIDE) for name in self.files.ls(self.root, detail=False)
        )

    def write(self, name: str, content: bytes) -> None:
        """Write a file aside and rename it. Raises UserError where it cannot be written; what is there stays."""
        path = f"{self.root}/{name}"
        aside = f"{path}.{uuid.uuid4().hex}{ASIDE}"
        try:
            self.files.makedirs(path.rpartition("/")[0], exist_ok=True)
            self.files.pipe_file(aside, content)
            self.files.mv(aside, path)
        except OSError as error:
            with contextlib.suppress(OSError):
                self.files.rm_file(aside)
            raise UserError(
                f"{path}: cannot be written ({error.strerror or error}); mend that and give the same command again: "
                "what is finished is kept"
            ) from error

    def read(self, name: str) -> bytes:
        """A file's content."""
        try:
            return bytes(self.files.cat_file(f"{self.root}/{name}"))
        except FileNotFoundError:
            raise UserError(f"{self.path}: there is no {name}; is it a run of segaudit?") from None

    def read_json(self, name: str) -> Any:
        """A JSON file's content, an object."""
        try:
            content = json.loads(self.read(name))
        except ValueError as error:
            raise UserError(f"{self.path}/{name}: is not JSON ({error}); is it a run of segaudit?") from error
        if not isinstance(content, dict):
            raise UserError(f"{self.path}/{name}: is not an object; is it a run of segaudit?")
        return content

    def write_json(self, name: str, content: Any) -> None:
        """Write a JSON file."""
        self.write(name, json.dumps(content, indent=1, sort_keys=True).encode())

    def parts(self, kind: str, key: str) -> set[int]:
        """The numbers of the finished parts of a cell; kind: `cells` or `images`."""
        folder = f"{self.root}/{kind}/{key}"
        self.files.invalidate_cache()  # other machines write here too
        if not self.files.exists(folder):
            return set()
        names = [name.rpartition("/")[2] for name in self.files.ls(folder, detail=False)]
        found = (re.fullmatch(r"part-(\d+)\.parquet", name) for name in names)
        return {int(match[1]) for match in found if match}

    def write_records(self, key: str, part: int, records: Records) -> None:
        """Write the rows of one shard of a cell."""
        columns: dict[str, Any] = {"id": list(records.ids)}
        for prefix, counts in (("", records.counts), ("rounded_", records.rounded), ("goal_", records.goal)):
            columns |= {prefix + name: None if counts is None else list(getattr(counts, name)) for name in COUNTS}
        if (drawn := records.redrawn) is not None:
            columns |= {f"redrawn_{name}": list(getattr(drawn, name).reshape(len(records), -1)) for name in COUNTS}
        for prefix, norms in (("", records.norms), ("rounded_", records.norms_rounded)):
            columns |= {prefix + name: getattr(norms, name) for name in NORMS}
        columns |= {name: getattr(records, name) for name in (*SINGLES, "choice", "scoring")}
        self.write(_part("cells", key, part), _parquet({k: v for k, v in columns.items() if v is not None}))

    def read_records(self, key: str) -> Records:
        """The rows of all finished parts of a cell, in the order of the shards."""
        names = [_part("cells", key, part) for part in sorted(self.parts("cells", key))]
        tables = [pq.read_table(io.BytesIO(self.read(name))) for name in names]
        table = pa.concat_tables(tables, promote_options="default")  # older parts lack a column
        column = {name: table[name] for name in table.column_names}

        def matrix(name: str) -> Any:
            return np.stack(column[name].to_numpy(zero_copy_only=False))

        def counts(prefix: str) -> Counts:
            return Counts(*(matrix(prefix + name) for name in COUNTS))

        def norms(prefix: str) -> Norms:
            return Norms(*(column[prefix + name].to_numpy() for name in NORMS))

        shape = len(table), -1, matrix("target").shape[1]
        drawn = [matrix(f"redrawn_{name}").reshape(shape) for name in COUNTS if f"redrawn_{name}" in column]
        return Records(
            ids=tuple(column["id"].to_pylist()),
            counts=counts(""),
            rounded=counts("rounded_"),
            norms=norms(""),
            norms_rounded=norms("rounded_"),
            goal=counts("goal_") if "goal_target" in column else None,
            choice=column["choice"].to_numpy() if "choice" in column else None,
            scoring=column["scoring"].to_numpy() if "scoring" in column else None,
            redrawn=Counts(*drawn) if drawn else None,
            **{name: column[name].to_numpy() for name in SINGLES},
        )

    def write_votes(self, key: str, part: int, votes: Votes) -> None:
        """Write how the noisy copies of the images of one shard voted."""
        columns: dict[str, Any] = {"id": list(votes.ids), "seconds": votes.seconds}
        columns |= {name: [table[:, i] for table in votes.pixels] for i, name in enumerate(VOTES)}
        self.write(_part("cells", key, part), _parquet(columns))

    def read_votes(self, key: str) -> Votes:
        """How the noisy copies voted in all finished parts, in the order of the shards."""
        names = [_part("cells", key, part) for part in sorted(self.parts("cells", key))]
        table = pa.concat_tables([pq.read_table(io.BytesIO(self.read(name))) for name in names])
        columns = [table[name].to_numpy(zero_copy_only=False) for name in VOTES]
        pixels = tuple(np.stack(rows, 1) for rows in zip(*columns, strict=True))
        return Votes(tuple(table["id"].to_pylist()), pixels, table["seconds"].to_numpy())

    def write_scores(self, key: str, part: int, ids: Sequence[str], scores: Floats) -> None:
        """Write what a detector makes of the images of one shard of a cell."""
        self.write(_part("cells", key, part), _parquet({"id": list(ids), "score": scores}))

    def read_scores(self, key: str) -> tuple[tuple[str, ...], Floats]:
        """What a detector makes of the images of all finished parts, in the order of the shards."""
        names = [_part("cells", key, part) for part in sorted(self.parts("cells", key))]
        table = pa.concat_tables([pq.read_table(io.BytesIO(self.read(name))) for name in names])
        return tuple(table["id"].to_pylist()), table["score"].to_numpy()

    def write_pictures(self, key: str, part: int, pictures: Sequence[Picture]) -> None:
        """Write the kept images of one shard of a cell."""
        columns = {
            "id": [p.id for p in pictures],
            "shape": [list(p.delta.shape) for p in pictures],
            "delta": [p.delta.tobytes() for p in pictures],
            "prediction": [p.prediction.tobytes() for p in pictures],
            "prediction_shape": [list(p.prediction.shape) for p in pictures],
        }
        if any(p.purified is not None for p in pictures):
            columns["purified"] = [None if p.purified is None else p.purified.tobytes() for p in pictures]
            columns["bare"] = [None if p.bare is None else p.bare.tobytes() for p in pictures]
        self.write(_part("images", key, part), _parquet(columns))

    def read_pictures(self, key: str, part: int) -> list[Picture]:
        """The kept images of one shard of a cell."""
        rows = pq.read_table(io.BytesIO(self.read(_part("images", key, part)))).to_pylist()

        def bytes_of(row: dict[str, Any], name: str, shape: Sequence[int]) -> Any:
            return None if row.get(name) is None else np.frombuffer(row[name], np.uint8).reshape(shape)

        return [
            Picture(
                row["id"],
                np.frombuffer(row["delta"], np.float16).reshape(row["shape"]),
                np.frombuffer(row["prediction"], np.uint8).reshape(row["prediction_shape"]),
                bytes_of(row, "purified", [*row["shape"][1:], row["shape"][0]]),
                bytes_of(row, "bare", row["prediction_shape"]),
            )
            for row in rows
        ]

    def picture_ids(self, key: str, part: int) -> set[str]:
        """The ids of the kept images of one shard of a cell, without reading the images."""
        with self.files.open(f"{self.root}/{_part('images', key, part)}") as file:
            return set(pq.read_table(file, columns=["id"])["id"].to_pylist())

    def has_fit(self, key: str) -> bool:
        """Whether there is what the attack of a cell has learnt."""
        return self.has(_fit(key))

    def write_fit(self, key: str, fitted: Tensor, cost: tuple[float, float, float]) -> None:
        """Write what the attack of a cell has learnt; cost: forwards, backwards and seconds an image of the run."""
        tensors = {"fitted": fitted.cpu().contiguous(), "cost": torch.tensor(cost, dtype=torch.float64)}
        self.write(_fit(key), save(tensors))

    def read_fit(self, key: str) -> tuple[Tensor, tuple[float, float, float]]:
        """What the attack of a cell has learnt, and its cost for each image."""
        tensors = load(self.read(_fit(key)))
        forwards, backwards, seconds = tensors["cost"].tolist()
        return tensors["fitted"], (forwards, backwards, seconds)

    def write_scenes(self, scenes: Sequence[Scene]) -> None:
        """Write the clean images that the page shows."""
        columns = {
            "id": [s.id for s in scenes],
            "shape": [list(s.image.shape) for s in scenes],
            "image": [s.image.tobytes() for s in scenes],
            "truth": [s.truth.tobytes() for s in scenes],
            "truth_shape": [list(s.truth.shape) for s in scenes],
        }
        self.write("images/scenes.parquet", _parquet(columns))

    def read_scenes(self) -> list[Scene]:
        """The clean images that the page shows."""
        if not self.has("images/scenes.parquet"):
            return []
        rows = pq.read_table(io.BytesIO(self.read("images/scenes.parquet"))).to_pylist()
        return [
            Scene(
                row["id"],
                np.frombuffer(row["image"], np.uint8).reshape(row["shape"]),
                np.frombuffer(row["truth"], np.uint8).reshape(row["truth_shape"]),
            )
            for row in rows
        ]


def _part(kind: str, key: str, part: int) -> str:
    return f"{kind}/{key}/part-{part:04d}.parquet"


def _fit(key: str) -> str:
    return f"fits/{key}.safetensors"


def _parquet(columns: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer, compression="zstd")
    return buffer.getvalue()
