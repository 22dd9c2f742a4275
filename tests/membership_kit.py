"""A small membership experiment: pictures, attacks and defenses in a user's file, and how runs are compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from segaudit.audit.execute import Executor, local
from segaudit.audit.run import results, run
from segaudit.audit.spec import RunSpec
from segaudit.types import Inference, Privacy, Results, Victim

OWN = '''
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from segaudit.data.base import Dataset
from segaudit.privacy.experiment import Scored
from segaudit.types import Segmenter, UserError

HERE = Path(__file__).parent


class Pictures(Dataset):
    """16 x 16 pictures of noise with a bright half, `per` of them to a group; of `odd` ones the mask is another's."""

    class_names, palette = ("dark", "bright"), ((0, 0, 0), (255, 255, 255))

    def __init__(self, count, per, limit, only, odd):
        super().__init__((f"{i // per:02d}-{i:03d}" for i in range(count)), limit=limit, only=only)
        self.per, self.odd = per, odd

    def group(self, image_id):
        return image_id.partition("-")[0] if self.per > 1 else image_id

    def read(self, image_id):
        rng = np.random.default_rng(int(image_id.partition("-")[2]))
        mask = np.zeros((16, 16), np.uint8)
        mask[:, int(rng.integers(3, 13)) :] = 1
        image = 90 + 60 * mask[..., None] + rng.normal(0, 25, (16, 16, 3))
        if self.odd:
            mask = rng.integers(0, 2, (4, 4), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
        return image.clip(0, 255).astype(np.uint8), mask


def pictures(count=48, per=1, limit=None, only: Sequence[str] | None = None, odd: bool = False):
    return Pictures(count, per, limit, only, odd)


def uncut():
    return Pictures(48, 1, None, None, False)


def least_loss(experiment, *, rng):
    """Minus the loss; and the words of what it was given, in a file a call."""
    assert experiment.victim.signals(experiment.candidates).keys() >= {"loss", "dice"}
    for shadow in (*experiment.shadows, *experiment.references):
        assert shadow.inside and shadow.outside
    return Scored(-experiment.victim.signals(experiment.candidates)["loss"], None)


def by_shadow(experiment, *, rng, scale: float = 1.0):
    """Asks a shadow, a reference and the victim for maps."""
    if not experiment.references:
        raise UserError("by_shadow needs references")
    mean = []
    for asked in (experiment.victim, experiment.shadows[0].asked, experiment.references[0].asked):
        found = {}
        for ids, logits in asked.maps(experiment.candidates):
            assert logits.dtype == torch.float32 and logits.shape[1:] == (2, 16, 16)
            found |= dict(zip(ids, logits.std((1, 2, 3)).tolist(), strict=True))
        mean.append(np.array([found[name] for name in experiment.candidates]))
    noise = torch.rand(len(experiment.candidates), generator=rng).double().numpy()
    return Scored(scale * (mean[0] - mean[1] / 2 - mean[2] / 2) + 1e-3 * noise, 0.0)


def blind(experiment, *, rng, members):
    """Knows who is a member, as the check of the split does."""
    return Scored(np.array([float(name in members) for name in experiment.candidates]), 0.5)


blind.baseline = True


class Halved(Segmenter):
    def __init__(self, model):
        super().__init__()
        self.class_names, self.model = model.class_names, model

    def forward(self, images):
        return self.model(images) / 2


def halved(trainer):
    """Serves half the logits of the plain network."""
    return Halved(trainer.fit(trainer.members))


def fewer(trainer, share: float = 0.5):
    """Trained on a part of the members, and notes which: an image a line."""
    chosen = trainer.members[: max(2, int(share * len(trainer.members)))]
    trainer.note(epsilon=share)
    return trainer.fit(chosen)


def broken(trainer):
    """No network."""
    return None


def from_reference(trainer):
    """Trained on images of the population too."""
    if not trainer.reference:
        raise UserError("from_reference needs a reference set")
    return trainer.fit((*trainer.members, *trainer.reference[:2]))
'''


def write(folder: Path) -> str:
    """The user's file; what stands before the names in it."""
    path = folder / "own.py"
    if not path.exists():
        path.write_text(OWN)
    return f"{path}:"


def content(folder: Path, data: dict[str, Any] | None = None, **over: Any) -> dict[str, Any]:
    """A spec as its file would hold it; over: keys of the block."""
    own = write(folder)
    block: dict[str, Any] = {
        "victim": {"source": "tiny", "name": "unet", "args": {"width": 2}},
        "train_size": 8,
        "references": 2,
        "training": {"epochs": 1, "batch": 4, "precision": "fp32"},
        "attacks": [f"{own}least_loss"],
    }
    made = {"name": "members", "data": {"name": f"{own}pictures"} | (data or {}), "precision": "fp32"}
    return made | {"membership": {key: v for key, v in (block | over).items() if v is not None}}


def spec(folder: Path, data: dict[str, Any] | None = None, **over: Any) -> RunSpec:
    """The same, read."""
    return RunSpec.model_validate(content(folder, data, **over))


def found(asked: RunSpec, out: Path, executor: Executor | None = None) -> Privacy:
    """Run a spec; what is read back."""
    return whole(asked, out, executor).privacy or Privacy((), (), {})


def whole(asked: RunSpec, out: Path, executor: Executor | None = None) -> Results:
    """Run a spec; all that is read back."""
    run(asked, str(out), executor or local(1), "a test")
    return results(str(out))


def computed(out: Path) -> list[int]:
    """What each session says that it computed."""
    return [session["computed"] for session in json.loads((out / "log.json").read_text())["sessions"]]


def nets(out: Path) -> dict[str, int]:
    """The kept networks, with what changes when one is written again."""
    return {path.name: path.stat().st_mtime_ns for path in (out / "nets").glob("*.safetensors")}


def words(own: Inference | Victim) -> tuple[str, ...]:
    """What it is of, the names of a user's file without their place."""
    keys = ("model", "defense", "poison") + (("threat", "attack") if isinstance(own, Inference) else ())
    return tuple(str(getattr(own, key)).rpartition(":")[2] for key in keys)


def assert_same(one: Privacy, other: Privacy) -> None:
    """The same rows and numbers, but for the seconds."""
    assert [words(own) for own in one.inferences] == [words(own) for own in other.inferences]
    for a, b in zip(one.inferences, other.inferences, strict=True):
        assert a.ids == b.ids
        np.testing.assert_array_equal(a.member, b.member)
        np.testing.assert_array_equal(a.scores, b.scores)
        np.testing.assert_array_equal(a.target, b.target)
    for mine, theirs in zip(one.victims, other.victims, strict=True):
        assert words(mine) == words(theirs)
        np.testing.assert_array_equal(mine.members.intersection, theirs.members.intersection)
        np.testing.assert_array_equal(mine.others.intersection, theirs.others.intersection)
        assert mine.facts["parameters"] == theirs.facts["parameters"]
