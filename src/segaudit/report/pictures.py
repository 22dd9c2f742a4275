"""The kept pictures, small enough to lie inside the page."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segaudit.metrics import confusion
from segaudit.report.summary import Row, grouped, percent, show_eps
from segaudit.types import VOID, Cell, Counts, Picture, Records, Results, Scene

SIDE = 320
"""The longer side of a shown picture at most; larger ones are reduced."""

SCENES = 8
"""Images shown at most."""

BUDGET = 6_500_000
"""Characters of pictures in the page at most; what does not fit stays in the store."""

HATCH = 130
"""The grey of the lines that void is hatched with."""

Bytes = NDArray[np.uint8]


def gallery(results: Results, rows: Sequence[Row], budget: int = BUDGET) -> dict[str, Any] | None:
    """Scenes, predictions on the clean images by model, and shots: one cell's pictures of every scene.

    The middle budget of each attack goes in first, then the largest, the smallest and the others while they fit.
    None without pictures of an attack.
    """
    scenes, palette = results.scenes[:SCENES], _palette(results.palette)
    by_cell = {row.cell: row for row in rows}
    cells = {cell: (by_cell[cell], records) for cell, records in results.cells}
    kept = {cell: pictures for cell, pictures in results.pictures.items() if cell in cells and pictures}
    clean = {cells[cell][0].name: _by_id(pictures) for cell, pictures in kept.items() if cell.attack == "none"}
    before = {row.name: records for row, records in cells.values() if row.clean}
    attacked = _by_importance({cell: cells[cell][0] for cell in kept if cell.attack != "none"})
    if not scenes or not attacked:
        return None
    seen: set[str] = set()
    shots: dict[Cell, dict[str, Any]] = {}
    for cell in attacked:
        row, records = cells[cell]
        shot = _shot(row, records, _by_id(kept[cell]), before.get(row.name), clean.get(row.name, {}), scenes, results)
        seen.update(text for item in shot["items"] if item for text in item.values())
        if sum(map(len, seen)) > budget and shots:
            break
        shots[cell] = shot
    order = [cell for cell in cells if cell in shots]
    lowest = min(order, key=lambda cell: (attacked[cell], cells[cell][0].miou))
    return {
        "scenes": [_scene(scene, palette) for scene in scenes],
        "before": {
            name: [_map(pictures[scene.id].prediction, palette) if scene.id in pictures else None for scene in scenes]
            for name, pictures in clean.items()
        },
        "shots": [shots[cell] for cell in order],
        "start": order.index(lowest),
        "purified": any("purified" in item for cell in order for item in shots[cell]["items"] if item),
        "left_out": len(attacked) - len(shots),
        "scenes_left_out": len(results.scenes) - len(scenes),
    }


def pack(shown: dict[str, Any]) -> dict[str, Any]:
    """The gallery with each picture once, in `files`, and its number elsewhere: transfers share their images."""
    files: dict[str, int] = {}

    def number(uri: str | None) -> int | None:
        return None if uri is None else files.setdefault(uri, len(files))

    def numbered(item: dict[str, str]) -> dict[str, Any]:
        return {key: text if key == "told" else number(text) for key, text in item.items()}

    shots = [shot | {"items": [item and numbered(item) for item in shot["items"]]} for shot in shown["shots"]]
    before = {name: [number(uri) for uri in uris] for name, uris in shown["before"].items()}
    return {"shots": shots, "before": before, "files": list(files), "start": shown["start"]}


def thumbnails(results: Results, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Image and mask of those of these images that the run keeps, by id."""
    palette = _palette(results.palette)
    return {scene.id: _scene(scene, palette) for scene in results.scenes if scene.id in ids}


def _by_importance(rows: Mapping[Cell, Row]) -> dict[Cell, int]:
    """The cells in the order in which they are worth a place, each with its rank among its attack's budgets."""
    ranks: dict[int, int] = {}
    for group in grouped(rows.values(), "name", "attack", "threat", "norm"):
        budgets = sorted({math.inf if row.eps is None else row.eps for row in group})
        middle = budgets[len(budgets) // 2]
        order = list(dict.fromkeys([middle, budgets[-1], budgets[0], *budgets]))
        ranks |= {id(row): order.index(math.inf if row.eps is None else row.eps) for row in group}
    ranked = {cell: ranks[id(row)] for cell, row in rows.items()}
    return dict(sorted(ranked.items(), key=lambda item: item[1]))


def _shot(
    row: Row,
    records: Records,
    pictures: Mapping[str, Picture],
    before: Records | None,
    clean: Mapping[str, Picture],
    scenes: Sequence[Scene],
    results: Results,
) -> dict[str, Any]:
    largest = max((float(np.abs(pictures[s.id].delta).max()) for s in scenes if s.id in pictures), default=0.0)
    scale = _scale(largest)
    palette = _palette(results.palette)
    items: list[dict[str, str] | None] = []
    for scene in scenes:
        picture = pictures.get(scene.id)
        if picture is None:
            items.append(None)
            continue
        delta = np.moveaxis(picture.delta.astype(np.float32), 0, 2)
        item = {
            "image": _photo(_bytes(scene.image / 255 + delta)),
            "delta": _noise(_bytes(0.5 + scale * delta)),
            "after": _map(picture.prediction, palette),
            "told": _told(before, records, scene, clean.get(scene.id), picture, results.class_names),
        }
        if picture.purified is not None and picture.bare is not None:
            item |= {"purified": _photo(picture.purified), "bare": _map(picture.bare, palette)}
        items.append(item)
    budget = show_eps(row.eps, row.norm)
    return {"model": row.name, "attack": row.label, "eps": budget, "scale": scale, "items": items}


def _scene(scene: Scene, palette: Bytes) -> dict[str, Any]:
    height, width = scene.image.shape[:2]
    truth = _reduced(scene.truth, Image.Resampling.NEAREST)
    y, x = np.indices(truth.shape)
    coloured = palette[truth]
    coloured[(truth == VOID) & ((x + y) % 6 < 2)] = HATCH
    return {
        "id": scene.id,
        "image": _photo(scene.image),
        "truth": _uri(coloured, lossless=True),
        "ratio": f"{width} / {height}",
        "small": max(height, width) < SIDE // 4,
    }


def _told(
    before: Records | None,
    records: Records,
    scene: Scene,
    clean: Picture | None,
    picture: Picture,
    names: Sequence[str],
) -> str:
    """What one image's pictures show, in numbers; the classes' names where the map is one label."""
    if scene.truth.size == 1:
        told = [names[shown.prediction.item()] for shown in (clean, picture) if shown]
        truth = scene.truth.item()
        bare = "" if picture.bare is None else f", without the defense {names[picture.bare.item()]}"
        return f"truth {'void' if truth == VOID else names[truth]}, predicted {' → '.join(told)}{bare}"
    if scene.id not in records.ids:
        return ""
    mious = [f"{percent(_image_miou(rows, scene.id))} %" for rows in (before, records) if rows and scene.id in rows.ids]
    i = records.ids.index(scene.id)
    size = show_eps(float(records.norms.linf[i]), "linf")
    return f"mIoU of this image {' → '.join(mious)}, Linf {size}, L2 {records.norms.l2[i]:.3g}"


def _image_miou(records: Records, image_id: str) -> float:
    i, counts = records.ids.index(image_id), records.counts
    return confusion.image_miou(Counts(*(x[i : i + 1] for x in (counts.intersection, counts.union, counts.target))))


def _scale(largest: float) -> int:
    """The largest of 1, 2, 5, 10, 20, ... that keeps the perturbation around grey inside of black and white."""
    if largest <= 0:
        return 1
    steps = [factor * 10**power for power in range(7) for factor in (1, 2, 5)]
    return max((step for step in steps if step * largest <= 0.5), default=1)


def _by_id(pictures: Sequence[Picture]) -> dict[str, Picture]:
    return {picture.id: picture for picture in pictures}


def _palette(colours: Sequence[tuple[int, int, int]]) -> Bytes:
    """A colour for each of the 256 labels: white for void, black for what has no class."""
    palette = np.zeros((256, 3), np.uint8)
    palette[: len(colours)] = colours
    palette[VOID] = 255
    return palette


def _bytes(values: NDArray[Any]) -> Bytes:
    return (values.clip(0, 1) * 255).round().astype(np.uint8)


def _reduced(values: Bytes, how: Image.Resampling) -> Bytes:
    height, width = values.shape[:2]
    factor = SIDE / max(height, width)
    if factor >= 1:
        return values
    size = max(1, round(width * factor)), max(1, round(height * factor))
    return np.asarray(Image.fromarray(values).resize(size, how))


def _rgb(image: Bytes) -> Bytes:
    """Three bands; of any other number the first, as grey."""
    return image if image.shape[2] == 3 else np.repeat(image[:, :, :1], 3, 2)


def _photo(image: Bytes) -> str:
    return _uri(_reduced(_rgb(image), Image.Resampling.LANCZOS))


def _noise(image: Bytes) -> str:
    """Reduced by leaving pixels out: their mean would show less noise than there is. Few levels pack without loss."""
    reduced = _reduced(_rgb(image), Image.Resampling.NEAREST)
    few = np.count_nonzero(np.bincount(reduced.ravel(), minlength=256)) <= 16
    return _uri(reduced, lossless=True) if few else _uri(reduced, quality=40)


def _map(prediction: Bytes, palette: Bytes) -> str:
    return _uri(palette[_reduced(prediction, Image.Resampling.NEAREST)], lossless=True)


def _uri(image: Bytes, **how: Any) -> str:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "WEBP", **{"quality": 75} | how)
    return "data:image/webp;base64," + base64.b64encode(stream.getvalue()).decode()
