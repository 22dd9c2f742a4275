"""The networks that are shipped with their weights: the embedded default, trained on `scenes`."""

from __future__ import annotations

from pathlib import Path

from segaudit import registry
from segaudit.models import weights
from segaudit.models.build import Network
from segaudit.types import UserError

ZOO = Path(__file__).parent / "zoo"
"""`NAME.safetensors`, each as `segaudit train experiments/train/scenes-NAME.yaml` left it."""


def names() -> list[str]:
    """The shipped networks."""
    return sorted(path.stem for path in ZOO.glob("*.safetensors"))


def bundled(name: str, outputs: int) -> Network:
    """A shipped network with its weights: `unet`, `pyramid`, `dilated` (street scenes), `lesion` (lesions on tissue).

    Built again from the card in its weights file. Raises UserError for another name or number of classes.
    Source: ours; source `tiny`, trained on `scenes` by recipe `standard`.
    """
    known = names()
    if name not in known:
        raise UserError(
            f"no bundled model is called {name!r}{registry.suggest(name, known)}; there are: {', '.join(known)}"
        )
    path = ZOO / f"{name}.safetensors"
    tensors, card = weights.read(path)
    model, classes = card["model"], card["class_names"]
    if outputs != len(classes):
        data = card["training"]["data"]["val"]
        own = ", ".join(f"{key}: {value}" for key, value in {"name": data["name"], **data["args"]}.items())
        raise UserError(
            f"bundled model {name!r} knows {len(classes)} classes ({', '.join(classes)}), not {outputs}; audit it on "
            f"`data: {{{own}}}`, or give it `outputs: {len(classes)}` and a class_map"
        )
    made = registry.load("model", model["source"])(model["name"], outputs, **model["args"])
    weights.fill(made.net, tensors, path)
    return Network(made.net, model["preprocess"])
