"""Robustness and privacy of the same networks: the victims of an experiment as the models of an audit."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from segaudit import registry
from segaudit.audit import build
from segaudit.audit.keys import VICTIM as SOURCE
from segaudit.audit.membership import networks
from segaudit.audit.membership.experiment import plan
from segaudit.audit.membership.networks import Net, Study
from segaudit.audit.membership.poison_spec import PoisonSpec
from segaudit.audit.membership.spec import Training
from segaudit.audit.membership.split import VICTIM, Split
from segaudit.audit.parts import ModelSpec, Part, Tuned
from segaudit.audit.spec import RunSpec
from segaudit.audit.store import Store
from segaudit.models.opaque import has_gradient
from segaudit.nn.precision import default_device
from segaudit.types import Segmenter, UserError


def meant(spec: RunSpec) -> bool:
    """Whether a spec attacks the victims of its experiment: it has attacks, and no models."""
    return spec.membership is not None and bool(spec.attacks) and not spec.models


def alone(spec: RunSpec) -> RunSpec:
    """The experiment without the attacks, which comes first.

    Raises UserError where there will be no victim to attack, or data that cannot be cut to some images.
    """
    if not registry.accepts("data", spec.data.name, "only"):
        raise UserError(f"data {spec.data.name!r} has no argument `only`, by which the victims' images are named")
    if spec.membership and all(spec.membership.poison):
        raise UserError("membership: attacks are on victims that are not poisoned; put none among its poison")
    left: dict[str, Any] = {"attacks": [], "eps": [], "certification": None, "scaling": None, "detection": None}
    return spec.model_copy(update=left)


def audited(spec: RunSpec, store: Store) -> RunSpec:
    """The attacks on the victims that are not poisoned, on images that these were not trained on.

    A victim without a gradient (as one that gives labels alone) is left out, where an attack needs one: it would be no
    more than the same network with its gradient hidden. Raises UserError where none is left.
    """
    data = build.dataset(spec.data)
    planned = plan(spec, data, store.path)
    assert planned is not None
    blind = all(registry.gradient_free(attack.name) for attack in spec.attacks)
    others, models = planned.study.split.outside(VICTIM), []
    probe = data.sample(others[0])[0][None].to(default_device())
    for net in (net for net in planned.victims if not net.poison):
        if blind or _leads(networks.make(planned.study, net)[0], probe):
            model, defense = net.model.title(), net.defense.label()
            label = model if defense == "none" else f"{model} + {defense}"
            models.append(ModelSpec(source=SOURCE, name=net.key, label=label, args={"store": store.path}))
            store.write_json(_place(net.key), _card(planned.study, net))
    if not models:
        raise UserError("membership: none of the victims has a gradient to attack it by; put none among its defenses")
    args: dict[str, Any] = {key: value for key, value in spec.data.args.items() if key not in ("limit", "only")} | {
        "only": list(others)
    }
    return spec.model_copy(update={"models": models, "data": Part(name=spec.data.name, args=args)})


def victim(name: str, outputs: int, store: str) -> Segmenter:
    """A victim of a membership experiment, as it is served.

    name: its key. store: of the run that trained it.
    Source: ours.
    """
    return networks.make(*_read(Store(store), name))[0]


def _leads(model: Segmenter, image: Tensor) -> bool:
    """Whether what a model answers of an image has a gradient in it."""
    if not has_gradient(model):
        return False
    with torch.enable_grad():
        return bool(model(image.clone().requires_grad_()).requires_grad)


def _place(key: str) -> str:
    return f"networks/{key}.card.json"


def _card(study: Study, net: Net) -> dict[str, Any]:
    """What it takes to make a network again from its key and the store."""
    split = {field.name: getattr(study.split, field.name) for field in fields(Split)}
    own = {key: getattr(net, key).model_dump(mode="json") for key in ("model", "defense", "poison")}
    shared = {key: getattr(study, key).model_dump(mode="json") for key in ("data", "training")}
    return {
        "net": own | {"name": net.name},
        "study": shared | {"batch": study.batch, "seed": study.seed, "split": split},
    }


def _read(store: Store, key: str) -> tuple[Study, Net]:
    card = store.read_json(_place(key))
    own, shared = card["net"], card["study"]
    split: dict[str, Any] = shared["split"]
    split |= {name: tuple(value) for name, value in split.items() if isinstance(value, list)}
    split["inside"] = {name: tuple(ids) for name, ids in split["inside"].items()}
    study = Study(
        store=store.path,
        data=Part.model_validate(shared["data"]),
        training=Training.model_validate(shared["training"]),
        split=Split(**split),
        batch=shared["batch"],
        seed=shared["seed"],
    )
    model, defense = ModelSpec.model_validate(own["model"]), Tuned.model_validate(own["defense"])
    return study, Net(key, own["name"], model, defense, PoisonSpec.model_validate(own["poison"]))
