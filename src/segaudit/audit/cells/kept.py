"""What a worker keeps from one task to the next: data, models and their cheap copies, and what attacks have learnt."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from segaudit.audit import build
from segaudit.audit.parts import ModelSpec, Part
from segaudit.audit.store import Store
from segaudit.data.base import Dataset
from segaudit.defenses.eot import EOT, draws_of
from segaudit.models.ensemble import Ensemble
from segaudit.models.fast import Fast
from segaudit.nn.precision import default_device
from segaudit.types import VOID, Segmenter

NONE = Part(name="none")


def forget() -> None:
    """Drop the data and models of an earlier run in this process: their files may have changed since."""
    for keeper in (_dataset, _class_pixels, learnt, _model, _together):
        keeper.cache_clear()
    _views.clear()


def dataset(part: Part) -> Dataset:
    """The data set of a part."""
    return _dataset(part.model_dump_json())


def class_pixels(part: Part) -> Tensor:
    """How many valid pixels each class has in a data set, K."""
    return _class_pixels(part.model_dump_json())


def model(spec: ModelSpec, class_names: tuple[str, ...], defense: Part = NONE) -> Segmenter:
    """A model behind a defense, on the device that computes."""
    return _model(spec.model_dump_json(), defense.model_dump_json(), class_names)


def together(specs: Sequence[ModelSpec], class_names: tuple[str, ...]) -> Segmenter:
    """Bare models as one, their ensemble."""
    return _together(tuple(spec.model_dump_json() for spec in specs), class_names)


def fast(model: Segmenter, precision: str, probe: Tensor, times: int = 1) -> Fast:
    """The cheap copy of a model, made once; of a random one its expectation over `times` the draws that it asks for."""
    key = (id(model), precision, times)
    if key not in _views or _views[key][0] is not model:
        if len(_views) >= 4:
            _views.clear()
        draws = draws_of(model) * times
        _views[key] = (model, Fast(EOT(model, draws) if draws > 1 else model, precision, probe))
    return _views[key][1]


@lru_cache(maxsize=4)
def learnt(store: str, key: str) -> tuple[Tensor, tuple[float, float, float]]:
    """What the attack of a cell has learnt, and its cost for each image."""
    return Store(store).read_fit(key)


@lru_cache(maxsize=4)
def _dataset(part: str) -> Dataset:
    return build.dataset(Part.model_validate_json(part))


@lru_cache(maxsize=2)
def _class_pixels(part: str) -> Tensor:
    data = _dataset(part)
    flat = torch.cat([data.sample(name)[1].flatten() for name in data.ids])
    return torch.bincount(flat[flat != VOID], minlength=len(data.class_names))


@lru_cache(maxsize=4)
def _model(spec: str, defense: str, class_names: tuple[str, ...]) -> Segmenter:
    model = build.model(ModelSpec.model_validate_json(spec), class_names)
    model = build.defended(model, Part.model_validate_json(defense))
    return model.to(default_device(), memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


@lru_cache(maxsize=2)
def _together(specs: tuple[str, ...], class_names: tuple[str, ...]) -> Segmenter:
    return Ensemble([_model(spec, NONE.model_dump_json(), class_names) for spec in specs])


_views: dict[tuple[int, str, int], tuple[Segmenter, Fast]] = {}
