"""The semantic segmentation networks of transformers: a local folder or a name on the hub."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from segaudit.models.build import Network, reason
from segaudit.paths import expand
from segaudit.types import UserError


def huggingface(name: str, outputs: int, /, **args: Any) -> Network:
    """A network of transformers' AutoModelForSemanticSegmentation: a folder that save_pretrained wrote, or a hub id.

    Only safetensors are loaded, and code from the hub is never run. Mean, std, scale and colour order come from its
    preprocessor_config.json where it has one; images are not resized, but padded to a stride of 32. Weights that the
    checkpoint lacks are refused, unless `num_labels` asks for a new head.
    Source: transformers (Hugging Face), needs the extra `models`.
    """
    try:
        from transformers import AutoModelForSemanticSegmentation, ImageProcessingMixin
    except ImportError as error:
        raise UserError("model source huggingface needs transformers: pip install 'segaudit[models]'") from error
    place = expand(name)
    if name.startswith(("/", ".", "~")) and not place.is_dir():
        raise UserError(f"huggingface: there is no folder {place}")
    place_or_id = str(place) if place.is_dir() else name
    options = {**args, "use_safetensors": True, "trust_remote_code": False, "output_loading_info": True}
    try:
        with _quiet():
            net, found = AutoModelForSemanticSegmentation.from_pretrained(place_or_id, **options)
    except Exception as error:  # from a wrong argument or a failed download to a damaged file
        raise UserError(f"huggingface {name}: {_mend(error)}") from error
    lost = sorted(found["missing_keys"])
    if lost and "num_labels" not in args:
        raise UserError(
            f"huggingface {name}: the checkpoint lacks {len(lost)} weights of the network, such as {lost[0]}; "
            "give the segmentation model itself, or args `num_labels` for a new head to train"
        )
    if net.config.num_labels != outputs:
        raise UserError(
            f"huggingface {name} has {net.config.num_labels} labels, but the data ask for {outputs}; "
            f"give the model `outputs: {net.config.num_labels}` and a class_map from its labels to the data's classes"
        )
    version = {key: args[key] for key in ("revision", "subfolder") if key in args}
    try:
        config, _ = ImageProcessingMixin.get_image_processor_dict(place_or_id, **version)
    except OSError as error:
        if not place.is_dir():  # never guess for a published network: wrong statistics spoil it without a word
            raise UserError(
                f"huggingface {name}: its preprocessor_config.json cannot be had: {_mend(error)}"
            ) from error
        config = {}
    return Network(net.float(), {**preprocessing(config), "stride": 32})


def preprocessing(config: Mapping[str, Any]) -> dict[str, Any]:
    """A preprocessor_config.json in the words of `Wrapped`: {} leaves the image in [0, 1] as it is."""
    known: dict[str, Any] = {}
    if config and not config.get("do_rescale", True):
        known["scale"] = 255
    elif "rescale_factor" in config:
        known["scale"] = round(255 * config["rescale_factor"], 6)
    if config.get("do_normalize", True) and "image_mean" in config:
        known |= {"mean": config["image_mean"], "std": config.get("image_std", 1.0)}
    if config.get("do_flip_channel_order"):
        known["order"] = "bgr"
    return known


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's own report of a load and its bars: what matters of them is raised."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _mend(error: Exception) -> str:
    text = str(error)
    if "connect to" in text or "local cache" in text:
        return "it is not on this machine and the hub cannot be reached; give a folder that save_pretrained wrote"
    if "safetensors" in text:
        return f"{reason(error)} (only safetensors are loaded: write it anew with save_pretrained)"
    return reason(error)
