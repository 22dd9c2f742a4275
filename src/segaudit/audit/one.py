"""`segaudit attack`: one image, one attack, the pictures."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from pydantic import ValidationError
from torch import Tensor

from segaudit import registry
from segaudit.audit import build, parts
from segaudit.audit.spec import RunSpec
from segaudit.data.base import Dataset, Files, read_image, read_mask
from segaudit.metrics import confusion
from segaudit.metrics.perturbation import norms, to_8bit
from segaudit.models.fast import Fast
from segaudit.nn.passes import watch
from segaudit.nn.precision import default_device, prepare_process, resolve
from segaudit.rng import ImageStreams
from segaudit.types import VOID, UserError


def attack_one(
    image: Path, spec_path: Path, name: str, eps: str, model: str | None, mask: Path | None, out: Path
) -> Iterator[str]:
    """Attack one picture with a model of a spec; writes PNGs and the curve of its loss to `out`, and yields what
    happened, a line at a time. The curve is of the passes as the attack makes them: in its precision, before rounding
    to 8 bits, and with radius reduction from outside the ball too.

    Without a mask the truth is the model's own clean prediction. The adversarial PNG is scored as it was saved.
    """
    prepare_process()
    spec = parts.read(RunSpec, spec_path)
    chosen = [m for m in spec.models if model in (None, m.title())]
    if not chosen:
        known = [m.title() for m in spec.models]
        raise UserError(f"{spec_path} has no model {model!r}; it has: {', '.join(known)}")
    if hasattr(registry.load("attack", name), "fit"):
        raise UserError(f"attack {name!r} is fitted on many images first: put it among the attacks of a `segaudit run`")
    budget = _checked(spec, name, eps)
    data, device = build.dataset(spec.data), default_device()
    net = build.model(chosen[0], data.class_names).to(device)
    pixels = _pixels(image, data).to(device)
    with torch.no_grad():
        before = net(pixels).argmax(1)
    labels = before if mask is None else _labels(mask, data, before)
    view = Fast(net, resolve(spec.precision, device), pixels)
    own = {"eps": budget} if registry.accepts("attack", name, "eps") else {}
    with watch(view, labels) as curve:
        made = registry.load("attack", name)(
            view, pixels, labels, rng=ImageStreams(spec.seed, (image.name,), name), **own
        ).detach()
    saved = to_8bit(made)
    with torch.no_grad():
        after = net(saved).argmax(1)
    size = norms(saved, pixels)
    against = "its own prediction" if mask is None else mask
    yield f"{chosen[0].title()}, {name}{f', eps {budget * 255:g}/255' if own else ''}, against {against}"
    for title, prediction in (("before", before), ("after", after)):
        counts = confusion.count(prediction, labels, net.num_classes)
        yield f"{title}: mIoU {confusion.miou(counts):.4f}, accuracy {confusion.accuracy(counts):.4f}"
    yield f"perturbation as saved: Linf {size.linf[0] * 255:.2f}/255, L2 {size.l2[0]:.3f}"
    out.mkdir(parents=True, exist_ok=True)
    delta = (saved - pixels)[0]
    largest = float(delta.abs().max()) or 1.0
    for title, picture in (
        ("adversarial.png", saved[0]),
        ("perturbation.png", 0.5 + 0.5 * delta / largest),
        ("before.png", _colours(before[0], data)),
        ("after.png", _colours(after[0], data)),
    ):
        array = (picture.cpu().permute(1, 2, 0) * 255).round().byte().numpy()
        Image.fromarray(array.squeeze(2) if array.shape[2] == 1 else array).save(out / title)
        yield str(out / title)
    lines = [f"{number},{loss:.6g},{share:.6f}" for number, (loss, share) in enumerate(curve)]
    (out / "curve.csv").write_text("\n".join(["pass,cross_entropy,accuracy", *lines, ""]))
    yield str(out / "curve.csv")


def _checked(spec: RunSpec, name: str, eps: str) -> float:
    """The budget, held to what a spec may ask of an attack."""
    with contextlib.suppress(ValueError):
        eps = float(eps)  # type: ignore[assignment]
    try:
        return RunSpec(**dict(spec) | {"attacks": [name], "eps": [eps]}).eps[0]
    except ValidationError as error:
        raise UserError(parts.faults(error)) from error


def _pixels(path: Path, data: Dataset) -> Tensor:
    """1 x C x H x W in [0, 1], with as many channels as the images of the data."""
    picture = Image.fromarray(read_image(path))
    if not isinstance(data, Files) and len(data.sample(data.ids[0])[0]) == 1:
        picture = picture.convert("L")
    if data.size:
        picture = picture.resize(data.size[::-1], Image.Resampling.BILINEAR)
    image = np.atleast_3d(np.asarray(picture))
    return torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 255


def _labels(path: Path, data: Dataset, like: Tensor) -> Tensor:
    values = data.read_mask(path) if isinstance(data, Files) else read_mask(path)
    if data.size:
        values = np.asarray(Image.fromarray(values).resize(data.size[::-1], Image.Resampling.NEAREST))
    labels = torch.from_numpy(values.astype(np.int64))[None].to(like.device)
    if labels.shape != like.shape:
        raise UserError(f"{path}: the mask is {tuple(labels.shape[1:])}, the picture {tuple(like.shape[1:])}")
    known = len(data.class_names)
    wrong = labels[(labels >= known) & (labels != VOID)]
    if len(wrong):
        raise UserError(
            f"{path}: the mask holds label {int(wrong[0])}, but there are {known} classes and {VOID} for void"
        )
    return labels


def _colours(prediction: Tensor, data: Dataset) -> Tensor:
    table = torch.tensor(data.palette, dtype=torch.float32) / 255
    return table[prediction.cpu()].permute(2, 0, 1)
