"""One lazy registry: a new part is one file and one line here.

A name that is not in the table may be `my_file.py:function` or `package.module:function`: a user's own part.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from segaudit.paths import expand
from segaudit.types import UserError

TABLES: dict[str, dict[str, str]] = {
    "attack": {
        "fgsm": "segaudit.attacks.fgsm:fgsm",
        "fgsm_ll": "segaudit.attacks.fgsm:fgsm_ll",
        "ifgsm": "segaudit.attacks.fgsm:ifgsm",
        "ifgsm_ll": "segaudit.attacks.fgsm:ifgsm_ll",
        "mifgsm": "segaudit.attacks.mifgsm:mifgsm",
        "pgd": "segaudit.attacks.pgd:pgd",
        "segpgd": "segaudit.attacks.segpgd:segpgd",
        "cospgd": "segaudit.attacks.cospgd:cospgd",
        "apgd": "segaudit.attacks.apgd:apgd",
        "sea": "segaudit.attacks.sea:sea",
        "sea_relay": "segaudit.attacks.sea_relay:sea_relay",
        "dag": "segaudit.attacks.dag:dag",
        "alma_prox": "segaudit.attacks.alma_prox:alma_prox",
        "pdpgd": "segaudit.attacks.pdpgd:pdpgd",
        "fmn": "segaudit.attacks.fmn:fmn",
        "asma": "segaudit.attacks.asma:asma",
        "universal": "segaudit.attacks.universal:universal",
        "patch": "segaudit.attacks.patch:patch",
        "square": "segaudit.attacks.square:square",
        "noise": "segaudit.attacks.noise:noise",
        "evading": "segaudit.attacks.evading:evading",
        "on_manifold": "segaudit.attacks.on_manifold:on_manifold",
    },
    "scaling": {
        "image_scaling": "segaudit.attacks.image_scaling:image_scaling",
        "median_scaling": "segaudit.attacks.guarded_scaling:median_scaling",
        "random_scaling": "segaudit.attacks.guarded_scaling:random_scaling",
        "blended_scaling": "segaudit.attacks.blended_scaling:blended_scaling",
    },
    "guard": {
        "none": "segaudit.defenses.scaling_guards:none",
        "area": "segaudit.defenses.scaling_guards:area",
        "median": "segaudit.defenses.scaling_guards:median",
        "random": "segaudit.defenses.scaling_guards:random",
    },
    "scaling_detector": {
        "down_up_mse": "segaudit.defenses.scaling_detectors:down_up_mse",
        "down_up_ssim": "segaudit.defenses.scaling_detectors:down_up_ssim",
        "spectrum_points": "segaudit.defenses.scaling_detectors:spectrum_points",
        "spectrum_energy": "segaudit.defenses.scaling_detectors:spectrum_energy",
    },
    "detector": {
        "entropy_map": "segaudit.defenses.detectors.entropy_map:entropy_map",
        "spatial_consistency": "segaudit.defenses.detectors.spatial_consistency:spatial_consistency",
        "reconstruction": "segaudit.defenses.detectors.reconstruction:reconstruction",
        "divergence": "segaudit.defenses.detectors.divergence:divergence",
        "squeezing": "segaudit.defenses.detectors.squeezing:squeezing",
    },
    "target": {
        "next": "segaudit.attacks.targets:following",
        "image": "segaudit.attacks.targets:image",
        "uniform": "segaudit.attacks.targets:uniform",
        "least_likely": "segaudit.attacks.targets:least_likely",
        "hide": "segaudit.attacks.targets:hide",
        "swap": "segaudit.attacks.targets:swap",
    },
    "defense": {
        "none": "segaudit.defenses.none:none",
        "multiscale": "segaudit.defenses.multiscale:multiscale",
        "random_transforms": "segaudit.defenses.random_transforms:random_transforms",
        "jpeg": "segaudit.defenses.jpeg:jpeg",
        "median": "segaudit.defenses.median:median",
        "bilateral": "segaudit.defenses.bilateral:bilateral",
        "tv": "segaudit.defenses.tv:tv",
        "bit_depth": "segaudit.defenses.bit_depth:bit_depth",
        "blur": "segaudit.defenses.blur:blur",
        "crf": "segaudit.defenses.crf:crf",
        "chain": "segaudit.defenses.chain:chain",
        "smoothing": "segaudit.defenses.smoothing:smoothing",
        "denoise": "segaudit.defenses.denoise:denoise",
        "purify": "segaudit.defenses.purify:purify",
        "puvae": "segaudit.defenses.puvae:puvae",
        "gan_inversion": "segaudit.defenses.gan_inversion:gan_inversion",
        "diffusion": "segaudit.defenses.diffusion:diffusion",
    },
    "membership": {
        "no_model": "segaudit.privacy.attacks.no_model:no_model",
        "global_loss": "segaudit.privacy.attacks.global_loss:global_loss",
        "type1": "segaudit.privacy.attacks.type1:type1",
        "type2": "segaudit.privacy.attacks.type2:type2",
        "loss_map": "segaudit.privacy.attacks.loss_map:loss_map",
        "statistics": "segaudit.privacy.attacks.statistics:statistics",
        "lira": "segaudit.privacy.attacks.lira:lira",
        "rmia": "segaudit.privacy.attacks.rmia:rmia",
        "label_only": "segaudit.privacy.attacks.label_only:label_only",
    },
    "membership_defense": {
        "none": "segaudit.privacy.defenses.none:none",
        "argmax": "segaudit.privacy.defenses.argmax:argmax",
        "crop": "segaudit.privacy.defenses.crop:crop",
        "mixup": "segaudit.privacy.defenses.mixup:mixup",
        "minmax": "segaudit.privacy.defenses.minmax:minmax",
        "dp": "segaudit.privacy.defenses.dp:dp",
        "distillation": "segaudit.privacy.defenses.distillation:distillation",
        "selena": "segaudit.privacy.defenses.selena:selena",
        "adversarial": "segaudit.privacy.defenses.adversarial:adversarial",
    },
    "trigger": {
        "line": "segaudit.privacy.triggers:line",
        "square": "segaudit.privacy.triggers:square",
        "inside": "segaudit.privacy.triggers:inside",
    },
    "data": {
        "scenes": "segaudit.data.scenes:scenes",
        "camvid": "segaudit.data.camvid:camvid",
        "kvasir": "segaudit.data.kvasir:kvasir",
        "voc": "segaudit.data.voc:voc",
        "cityscapes": "segaudit.data.cityscapes:cityscapes",
        "coco": "segaudit.data.coco:coco",
        "msd_liver": "segaudit.data.msd_liver:msd_liver",
        "mnist": "segaudit.data.mnist:mnist",
        "cifar10": "segaudit.data.cifar10:cifar10",
        "digits": "segaudit.data.digits:digits",
        "folder": "segaudit.data.folder:folder",
    },
    "model": {
        "bundled": "segaudit.models.bundled:bundled",
        "tiny": "segaudit.models.tiny:tiny",
        "classic": "segaudit.models.classic:classic",
        "torchvision": "segaudit.models.torchvision:torchvision",
        "smp": "segaudit.models.smp:smp",
        "huggingface": "segaudit.models.huggingface:huggingface",
        "python": "segaudit.models.python:python",
    },
    "purifier": {
        "residual": "segaudit.models.purifiers.residual:Residual",
        "bottleneck": "segaudit.models.purifiers.residual:Bottleneck",
        "autoencoder": "segaudit.models.purifiers.autoencoder:Autoencoder",
        "vae": "segaudit.models.purifiers.vae:VAE",
        "cvae": "segaudit.models.purifiers.cvae:CVAE",
        "wgan": "segaudit.models.purifiers.gan:WGAN",
        "cwgan": "segaudit.models.purifiers.gan:CWGAN",
        "siamese": "segaudit.models.purifiers.siamese:Siamese",
        "diffusion": "segaudit.models.purifiers.diffusion:Diffusion",
    },
    "recipe": {
        "standard": "segaudit.training.standard:standard",
        "adversarial": "segaudit.training.adversarial:adversarial",
        "noise": "segaudit.training.noise:noise",
        "denoise": "segaudit.training.denoise:denoise",
        "purify": "segaudit.training.purify:purify",
        "vae": "segaudit.training.vae:vae",
        "wgan_gp": "segaudit.training.wgan_gp:wgan_gp",
        "siamese": "segaudit.training.siamese:siamese",
        "diffusion": "segaudit.training.diffusion:diffusion",
        "distillation": "segaudit.training.distillation:distillation",
        "mixup": "segaudit.training.mixup:mixup",
        "minmax": "segaudit.training.minmax:minmax",
        "private": "segaudit.training.private:private",
        "selena": "segaudit.training.selena:selena",
    },
}


def names(kind: str) -> list[str]:
    """The registered names of a kind of part, in the order of the table."""
    return list(TABLES[kind])


def load(kind: str, name: str) -> Callable[..., Any]:
    """The function of a registered part, or of a user's own `file.py:function` or `package.module:function`."""
    if ":" in name:
        return _resolve(kind, name)
    if name not in TABLES[kind]:
        known = ", ".join(names(kind)) or "none yet"
        raise UserError(f"no {kind} is called {name!r}{suggest(name, TABLES[kind])}; there are: {known}")
    return _resolve(kind, TABLES[kind][name])


def check_arguments(kind: str, name: str, given: Mapping[str, Any], handed: Iterable[str] = ()) -> None:
    """Refuse keywords that the part does not have, and the lack of one that it needs.

    handed: the parameters that the caller hands in itself.
    """
    parameters = inspect.signature(load(kind, name)).parameters
    free = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    own = {
        key: p
        for key, p in parameters.items()
        if key not in set(handed) and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    }
    for key in given:
        if key not in own and not free:
            known = ", ".join(own) or "none"
            raise UserError(f"{kind} {name!r} has no argument {key!r}{suggest(key, own)}; its arguments: {known}")
        if key in own and isinstance(own[key].default, bool) and not isinstance(given[key], bool):
            raise UserError(f"{kind} {name!r}: {key} must be true or false, not {given[key]!r}")
    for key, p in own.items():
        if p.default is p.empty and key not in given:
            raise UserError(f"{kind} {name!r} needs the argument {key!r}")


def accepts(kind: str, name: str, key: str) -> bool:
    """Whether a part takes the keyword `key`."""
    return key in inspect.signature(load(kind, name)).parameters


def default(kind: str, name: str, key: str) -> Any:
    """What a part takes for `key` when it is not told; None where it has no such keyword or no default."""
    own = inspect.signature(load(kind, name)).parameters.get(key)
    return None if own is None or own.default is own.empty else own.default


def gradient_free(attack: str) -> bool:
    """Whether an attack says of itself that it asks for scores alone: its function has a true `gradient_free`."""
    return bool(getattr(load("attack", attack), "gradient_free", False))


def describe(kind: str) -> list[tuple[str, str, str]]:
    """(name, one line, source) of every part of a kind, from its docstring: the first line and `Source: ...`."""
    rows = []
    for name in names(kind):
        text = inspect.getdoc(load(kind, name)) or ""
        source = [line.removeprefix("Source:").strip() for line in text.splitlines() if line.startswith("Source:")]
        rows.append((name, text.partition("\n")[0], " ".join(source)))
    return rows


def suggest(word: str, options: Iterable[str]) -> str:
    """` (did you mean 'x'?)`, or nothing where no option is near."""
    near = difflib.get_close_matches(word, list(options), n=1, cutoff=0.6)
    return f" (did you mean {near[0]!r}?)" if near else ""


def source_file(name: str) -> Path | None:
    """The file of a user's `file.py:function`, None for any other name."""
    place = name.rpartition(":")[0]
    return expand(place) if place.endswith(".py") else None


def _resolve(kind: str, name: str) -> Callable[..., Any]:
    place, _, function = name.rpartition(":")
    path = source_file(name)
    module = _from_file(kind, path) if path else _from_package(kind, place)
    found = getattr(module, function, None)
    if not callable(found):
        public = [key for key in vars(module) if callable(getattr(module, key)) and not key.startswith("_")]
        raise UserError(f"{kind} {name!r}: {place} has no function {function!r}{suggest(function, public)}")
    return found  # type: ignore[no-any-return]


def _from_file(kind: str, path: Path) -> Any:
    path = path.resolve()
    if not path.is_file():
        raise UserError(f"{kind}: there is no file {path}")
    key = f"segaudit_user_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    if key not in sys.modules:
        if str(path.parent) not in sys.path:
            sys.path.append(str(path.parent))  # the file may import its neighbours, as a script may
        spec = importlib.util.spec_from_file_location(key, path)
        if spec is None or spec.loader is None:
            raise UserError(f"{kind}: {path} is not a Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[key] = module
        try:
            spec.loader.exec_module(module)
        except (Exception, SystemExit) as error:
            del sys.modules[key]
            raise _broken(kind, path, error) from error
    return sys.modules[key]


def _from_package(kind: str, place: str) -> Any:
    try:
        return importlib.import_module(place)
    except Exception as error:
        raise _broken(kind, place, error) from error


def _broken(kind: str, place: Path | str, error: BaseException) -> UserError:
    """What went wrong in somebody's module, in one line."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return UserError(f"{kind}: {place} does not import: {text}")
