"""A folder of pictures with a net, defenses that hide its gradient, and the spec of a small audit of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from audit_kit import CLASSES, NET, content, write_pictures
from segaudit.audit.spec import RunSpec

EPS = 12 / 255
DEFENSES = """
import torch
from segaudit.types import Segmenter


class Masked(Segmenter):
    def __init__(self, model, how):
        super().__init__()
        self.model, self.how, self.class_names = model, how, model.class_names

    def forward(self, images):
        if self.how == "quantised":  # sixteen levels, whose gradient is zero
            return self.model(torch.round(images * 15) / 15)
        if self.how == "hot":  # a softmax of these is 0 or 1 to the last bit
            return 3e4 * self.model(images)
        if self.how == "detached":  # what decides has no gradient, and what has one leads astray
            return self.model(images.detach()) + 1e-3 * images.flip(1)
        return self.model(images)


def quantised(model):
    return Masked(model, "quantised")


def hot(model):
    return Masked(model, "hot")


def detached(model):
    return Masked(model, "detached")


def nothing(model):
    return Masked(model, "nothing")
"""
PLAIN = """

def plain():
    return nn.Sequential(nn.Conv2d(3, 8, 5, padding=2), nn.ReLU(), nn.Conv2d(8, 3, 3, padding=1))
"""
SCORED = [f"p{i:02d}" for i in range(16, 24)]


def write_folder(folder: Path) -> Path:
    """24 pictures, the nets and the defenses."""
    made = write_pictures(folder, 24)
    (made / "user_net.py").write_text(NET + PLAIN)
    (made / "masks.py").write_text(DEFENSES)
    return made


def spec_of(folder: Path, **over: Any) -> RunSpec:
    """Eight pictures, two attacks, two budgets, and diagnostics with few queries."""
    data = {"name": "folder", "root": str(folder), "classes": CLASSES, "only": SCORED}
    own = {"data": data, "attacks": ["fgsm", {"name": "pgd", "steps": 10}], "eps": ["4/255", "12/255"]}
    own |= {"pictures": {"images": 1}, "diagnostics": {"queries": 60}}
    return RunSpec.model_validate(content(folder, **(own | over)))
