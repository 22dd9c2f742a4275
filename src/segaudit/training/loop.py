"""The only training loop. It sees a Segmenter, images by id, and a recipe that turns a batch into a loss."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from segaudit.metrics import confusion
from segaudit.nn.precision import default_device, prepare_process, resolve
from segaudit.rng import ImageStreams
from segaudit.training.augment import augment
from segaudit.training.course import Course, generator, number
from segaudit.training.rates import RATES
from segaudit.training.schedule import Recipe, Samples, Schedule
from segaudit.types import Batch, Segmenter, UserError

Judge = Callable[[Any, Samples, int], dict[str, float]]
"""`(model, held-out images, batch) -> its score`, by name."""


@dataclass(frozen=True)
class Progress:
    """What the loop says after a step: for a bar, a log, nothing."""

    epoch: int
    step: int
    steps: int
    loss: float
    miou: float | None


def fit(
    model: nn.Module,
    train: Samples,
    held_out: Samples | None,
    recipe: Recipe,
    schedule: Schedule,
    folder: Path,
    tell: Callable[[Progress], None] = lambda _: None,
    judge: Judge | None = None,
) -> dict[str, float]:
    """Train in place; returns the score on the held-out images in float32 (empty without any).

    judge: what scores it, `evaluate` unless given: `miou` and `accuracy`.

    The folder gets `metrics.jsonl` (a line an epoch, see `history`) and `checkpoint.pt`, from which the same call goes
    on: each epoch draws from streams of its own number, so a resumed run sees what an undisturbed one does.
    """
    try:
        from accelerate import Accelerator
    except ImportError as error:
        raise UserError("training needs accelerate: pip install 'segaudit[train]'") from error
    prepare_process()
    score_of: Judge = judge or evaluate
    on_cpu = default_device().type == "cpu"
    precision = resolve(schedule.precision, default_device())
    accelerator = Accelerator(cpu=on_cpu, mixed_precision="no")  # it would cast the model's forward for good
    device = accelerator.device
    cast = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
    model.requires_grad_(True).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    betas = float(schedule.betas[0]), float(schedule.betas[1])
    optimizer = torch.optim.AdamW(_groups(model, schedule.weight_decay), lr=schedule.lr, betas=betas)
    views = Views(train, schedule)
    folder.mkdir(parents=True, exist_ok=True)
    state = _Checkpoint(folder / "checkpoint.pt")
    first, left = state.load(model, optimizer)
    before = [past for past in history(folder) if past["epoch"] < first]  # a kill may leave one that was not saved
    (folder / "metrics.jsonl").write_text("".join(json.dumps(past) + "\n" for past in before))
    runner, stepper = accelerator.prepare(model, optimizer)
    course = Course.of(recipe)(recipe, train, schedule, runner, stepper, accelerator, cast)
    course.epoch = first
    course.resume(left)
    steps = course.steps
    score: dict[str, float] = {}
    for epoch in range(first, schedule.epochs):
        began, total = time.perf_counter(), 0.0
        torch.manual_seed(number(schedule.seed, "epoch", epoch) % 2**63)
        runner.train()
        course.epoch = epoch
        for step, (images, labels, rows) in enumerate(views.loader(epoch, course.rows(epoch))):
            for group in optimizer.param_groups:
                done = (epoch * steps + step) / (schedule.epochs * steps)
                group["lr"] = schedule.lr * RATES[schedule.lr_schedule](done, schedule.warmup)
            ids = tuple(train.ids[i] for i in rows)
            batch = Batch(images.contiguous(memory_format=torch.channels_last), labels, ids).to(device)
            total += course.step(batch, ImageStreams(schedule.seed, ids, f"train/{epoch}"))
            tell(Progress(epoch, step + 1, steps, total / (step + 1), score.get("miou")))
        line: dict[str, float] = {"epoch": epoch, "loss": total / steps, "seconds": time.perf_counter() - began}
        if held_out is not None and (epoch + 1) % schedule.validate_every == 0 and epoch + 1 < schedule.epochs:
            with cast:
                score = score_of(model, held_out, schedule.batch)
            line |= score
        with (folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        state.save(model, optimizer, epoch + 1, course.state())
    model.eval().requires_grad_(False)
    return score_of(model, held_out, schedule.batch) if held_out is not None else {}


def history(folder: Path) -> list[dict[str, float]]:
    """The epochs of a training so far: `epoch`, `loss`, `seconds`, and the score where it was taken."""
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@torch.no_grad()
def evaluate(model: Segmenter, samples: Samples, batch: int = 8) -> dict[str, float]:
    """The data set's `miou` and `accuracy` of a model on clean images."""
    model.eval()
    device = next(model.parameters()).device
    rows = []
    for start in range(0, len(samples.ids), batch):
        images, labels = zip(*(samples.sample(name) for name in samples.ids[start : start + batch]), strict=True)
        logits = model(stack(images).to(device).contiguous(memory_format=torch.channels_last))
        rows.append(confusion.count(logits.argmax(1).cpu(), torch.stack(labels), model.num_classes))
    counts = confusion.join(rows)
    return {"miou": confusion.miou(counts), "accuracy": confusion.accuracy(counts)}


class Views(torch.utils.data.Dataset[tuple[Tensor, Tensor, int]]):
    """The augmented images of one epoch; the originals are kept, as bytes where that loses nothing."""

    def __init__(self, samples: Samples, schedule: Schedule) -> None:
        self.samples, self.schedule, self.epoch = samples, schedule, 0
        self.kept: dict[int, tuple[Tensor, Tensor]] = {}

    def loader(self, epoch: int, rows: Sequence[list[int]]) -> Iterator[tuple[Tensor, Tensor, Sequence[int]]]:
        """Images, labels and rows of each step of an epoch."""
        self.epoch = epoch
        loader = DataLoader(self, batch_sampler=rows, num_workers=self.schedule.workers, collate_fn=collate)
        try:
            yield from loader
        except UserError as error:  # from another process it comes with that one's traceback in its text
            raise UserError(str(error).rpartition(f"{UserError.__name__}: ")[2].strip()) from error

    def __len__(self) -> int:
        return len(self.samples.ids)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor, int]:
        if row not in self.kept:
            image, labels = self.samples.sample(self.samples.ids[row])
            whole = (image * 255).round().byte()
            self.kept[row] = whole if torch.equal(whole.float() / 255, image) else image, labels.byte()
        image, labels = self.kept[row]
        image = image if image.is_floating_point() else image.float() / 255
        rng = generator(self.schedule.seed, f"view/{self.samples.ids[row]}", self.epoch)
        return *augment(image, labels.long(), rng, **self.schedule.augment), row


class _Checkpoint:
    def __init__(self, path: Path) -> None:
        self.path = path

    def load(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, dict[str, Any]]:
        if not self.path.exists():
            return 0, {}
        state = torch.load(self.path, map_location="cpu", weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        return int(state["epoch"]), state.get("course", {})

    def save(self, model: nn.Module, optimizer: torch.optim.Optimizer, epoch: int, course: Mapping[str, Any]) -> None:
        aside = self.path.with_suffix(".part")
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch}
        torch.save(state | ({"course": course} if course else {}), aside)
        os.replace(aside, self.path)


def collate(views: Sequence[tuple[Tensor, Tensor, int]]) -> tuple[Tensor, Tensor, Sequence[int]]:
    """Views as one batch: images, labels and rows; a step that drew no image has one of none."""
    if not views:
        return torch.empty(0, 1, 1, 1), torch.empty(0, 1, 1, dtype=torch.int64), []
    images, labels, rows = zip(*views, strict=True)
    return stack(images), torch.stack(labels), rows


def stack(images: Sequence[Tensor]) -> Tensor:
    """Images as one batch. Raises UserError where they differ in size."""
    sizes = sorted({" x ".join(str(side) for side in image.shape[1:]) for image in images})
    if len(sizes) > 1:
        raise UserError(f"training: the images differ in size ({sizes[0]} and {sizes[1]}): give data a `size: [H, W]`")
    return torch.stack(list(images))


def _groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weights decay; biases and norms do not."""
    parameters = list(model.parameters())
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
