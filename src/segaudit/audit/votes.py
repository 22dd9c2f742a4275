"""What certificates are made from: the votes of noisy copies, planned, drawn and kept as the parts of a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from torch import Tensor

from segaudit.audit.keys import Contents, key_of
from segaudit.audit.plan import Job, Plan, cut
from segaudit.audit.spec import RunSpec
from segaudit.audit.store import Store
from segaudit.defenses.certify import Ballot, ballot
from segaudit.nn.precision import clock
from segaudit.rng import ImageStreams, drawing
from segaudit.types import VOID, Batch, Cell, Ints, Segmenter, Smoothed, UserError, Votes

VERSION = 1
"""Raised by hand when the code draws or counts something else for the same spec."""


def plan(spec: RunSpec, ids: Sequence[str], contents: Contents) -> Plan:
    """What is to be drawn for the certification of a spec: a job for each model, denoiser and sigma, none without.

    Its tau, alpha and correction are in no key: they are asked of the votes when they are there.
    """
    asked = spec.certification
    if asked is None:
        return Plan((), (), ())
    chosen, jobs = asked.images(ids), []
    for model in spec.models:
        for denoiser in asked.denoisers:
            for sigma in asked.sigma:
                of = Smoothed(model.title(), denoiser.label(), sigma, asked.n0, asked.n)
                own = {"votes": VERSION, "sigma": sigma, "n0": asked.n0, "n": asked.n}
                jobs.append(
                    Job(
                        key=key_of(spec, chosen, contents, model, denoiser, own),
                        cell=Cell(of.model, of.denoiser, "certified", "none", "l2", None),
                        model=model,
                        defense=denoiser,
                        attack=None,
                        eps=None,
                        source=None,
                        keep=False,
                        show=False,
                        smoothed=of,
                    )
                )
    return Plan(tuple(jobs), cut(chosen), ())


def draw(of: Smoothed, model: Segmenter, batches: Iterable[Batch], size: int, seed: int) -> Votes:
    """The votes on the images of a shard; size: copies that pass through the model at once."""
    ids: list[str] = []
    pixels, seconds = [], []
    for batch in batches:
        for i in range(len(batch)):
            image = batch[i : i + 1]
            began = clock(image.images.device)
            with drawing(ImageStreams(seed, image.ids, "certify/model")):
                streams = ImageStreams(seed, image.ids, "certify")
                found = ballot(model, image.images, rng=streams, sigma=of.sigma, n0=of.n0, n=of.n, batch=size)
            if found.classes.shape != image.labels.shape:
                wanted, got = (tuple(maps.shape[1:]) for maps in (image.labels, found.classes))
                raise UserError(f"model {of.model!r} gives maps of {got} on {image.ids[0]}, not {wanted}")
            seconds.append(clock(image.images.device) - began)
            pixels.append(tabulate(found, image.labels)[0])
            ids += image.ids
    return Votes(tuple(ids), tuple(pixels), np.array(seconds))


def tabulate(found: Ballot, labels: Tensor) -> list[Ints]:
    """The tables of `Votes` from maps N x H x W, one an image."""
    tables = []
    for maps in zip(labels, found.classes, found.votes, strict=True):
        truth, classes, votes = (own.cpu().numpy() for own in maps)
        kinds, pixels = np.unique(np.stack([truth, classes, votes])[:, truth != VOID], axis=1, return_counts=True)
        tables.append(np.column_stack([kinds.T, pixels]))
    return tables


def index(planned: Plan) -> dict[str, Any]:
    """What the report needs of the plan when models and data are gone; nothing where nothing is certified."""
    jobs = [{"key": job.key, "of": asdict(job.smoothed)} for job in planned.jobs if job.smoothed is not None]
    return {"votes": {"jobs": jobs, "parts": len(planned.shards)}} if jobs else {}


def read(store: Store, kept: Mapping[str, Any]) -> tuple[list[tuple[Smoothed, Votes]], int]:
    """The votes that are there, from the index of a run's plan, and how many parts of them are lacking."""
    asked = kept.get("votes", {"jobs": [], "parts": 0})
    found, lacking = [], 0
    for job in asked["jobs"]:
        done = store.parts("cells", job["key"])
        lacking += asked["parts"] - len(done)
        if done:
            found.append((Smoothed(**job["of"]), store.read_votes(job["key"])))
    return found, lacking
