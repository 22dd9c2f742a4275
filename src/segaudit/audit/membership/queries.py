"""What an attacker may ask a trained network: its maps, and its signals, which are kept in the store."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segaudit.audit.membership.kept import read_table, write_table
from segaudit.audit.store import COUNTS, Store
from segaudit.metrics import confusion
from segaudit.nn.precision import default_device
from segaudit.privacy.experiment import Samples
from segaudit.privacy.signals import measure
from segaudit.types import Counts, Floats, Segmenter, UserError


class Network:
    """An `Asked` of `privacy.experiment`: verdicts are float32, and the network is loaded when maps are asked for.

    key: of its signals in the store. load: gives it, behind what its defense puts before its answers.
    """

    def __init__(self, store: Store, key: str, load: Callable[[], Segmenter], samples: Samples, batch: int) -> None:
        self._store, self._key, self._load, self._samples, self._batch = store, key, load, samples, batch
        self._table: dict[str, Any] | None = None

    @torch.no_grad()
    def maps(self, ids: Sequence[str]) -> Iterator[tuple[tuple[str, ...], Tensor]]:
        """Logits N x K x H x W float32 of images, a batch of one size at a time, with their ids."""
        for names, logits, _ in self._answers(ids):
            yield names, logits

    def signals(self, ids: Sequence[str]) -> dict[str, Floats]:
        """What `privacy.signals.measure` makes of each image: name -> N, or N x K, float64."""
        table, rows = self._rows(ids)
        return {name: values[rows] for name, values in table.items() if name not in ("id", *COUNTS)}

    def counts(self, ids: Sequence[str]) -> Counts:
        """The pixels of each image by class, N x K each."""
        table, rows = self._rows(ids)
        return Counts(*(table[name][rows] for name in COUNTS))

    def answer(self, ids: Sequence[str]) -> None:
        """Keep the signals and counts of these images, in place of any that are kept."""
        names, counts, signals = list[str](), [], []
        for own, logits, labels in self._answers(ids):
            names += own
            signals.append(measure(logits, labels))
            counts.append(confusion.count(logits.argmax(1), labels, logits.shape[1]))
        found = {key: np.concatenate([part[key] for part in signals]) for key in signals[0]}
        pooled = confusion.join(counts)
        table = {"id": names} | {key: getattr(pooled, key) for key in COUNTS} | found
        write_table(self._store, f"signals/{self._key}.parquet", table)
        self._table = None

    def _rows(self, ids: Sequence[str]) -> tuple[dict[str, Any], list[int]]:
        if self._table is None:
            self._table = read_table(self._store, f"signals/{self._key}.parquet")
        places = {name: row for row, name in enumerate(self._table["id"])}
        missing = [name for name in ids if name not in places]
        if missing:
            raise UserError(f"membership: a network was asked for its signals of {missing[0]}, which has no role here")
        return self._table, [places[name] for name in ids]

    @torch.no_grad()
    def _answers(self, ids: Sequence[str]) -> Iterator[tuple[tuple[str, ...], Tensor, Tensor]]:
        """(ids, logits, labels) of a batch of one size at a time, in the order of the ids as far as sizes allow."""
        model, device = self._load().eval(), default_device()
        for rows in self._batches(ids):
            names, images, labels = zip(*rows, strict=True)
            batch = torch.stack(images).to(device).contiguous(memory_format=torch.channels_last)
            yield names, model(batch).float().cpu().contiguous(), torch.stack(labels)

    def _batches(self, ids: Sequence[str]) -> Iterator[list[tuple[str, Tensor, Tensor]]]:
        sizes: dict[Any, list[tuple[str, Tensor, Tensor]]] = {}
        for name in ids:
            image, labels = self._samples.sample(name)
            own = sizes.setdefault((image.shape, labels.shape), [])
            own.append((name, image, labels))
            if len(own) == self._batch:
                yield own.copy()
                own.clear()
        yield from (own for own in sizes.values() if own)


class Nobody:
    """What an attack is handed that sees no network."""

    def maps(self, ids: Sequence[str]) -> Iterator[tuple[tuple[str, ...], Tensor]]:
        """Raises UserError."""
        raise UserError("membership: an attack with `baseline = True` is not to ask a network")

    def signals(self, ids: Sequence[str]) -> dict[str, Floats]:
        """Raises UserError."""
        raise UserError("membership: an attack with `baseline = True` is not to ask a network")
