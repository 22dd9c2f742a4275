"""The tables that a paper prints: what was asked, from the rows of a run."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence

from segaudit.metrics import confusion
from segaudit.registry import suggest
from segaudit.report import certified, detection, masking, privacy_beside, privacy_tables, scaling, verdict
from segaudit.report.grid import WRITERS, Grid
from segaudit.report.summary import DASH, FIELDS, Row, clean_of, percent, show_eps, summarise, unique
from segaudit.types import Results, UserError

QUANTITIES = {
    "miou": "mIoU",
    "image_miou": "Mean of the images' own mIoU",
    "iou_ratio": "IoU ratio (mIoU over clean mIoU)",
    "accuracy": "Pixel accuracy",
}
QUANTITIES |= {f"{key}_8bit": f"{text} after rounding to 8 bits" for key, text in QUANTITIES.items()}
QUANTITIES |= {
    "spread": "Two standard deviations of the mIoU over the draws of a random defense",
    "dice": "Mean of the images' own Dice coefficients, of two classes that of the second",
    "success": "Images with at least 99 % of their pixels won",
    "goal_miou": "Of targeted attacks, mIoU with the target",
    "goal_accuracy": "Of targeted attacks, pixels of the target's class",
}
SHARES = ("miou", "image_miou", "accuracy", "iou_ratio", "miou_8bit")


def table(
    results: Results,
    format: str = "markdown",
    *,
    form: str | None = None,
    quantity: str | None = None,
    attack: str | None = None,
    eps: float | None = None,
) -> str:
    """A run as `markdown`, `latex` or `csv`.

    form: `pivot` (model x attack by budget; the default), `long` (a row a cell, the columns of `summary.FIELDS`; the
    default of csv), `transfer` (source x target), `classes` (IoU by class), `sizes` (mean IoU of small, medium and
    large things, as they are and after rounding to 8 bits), `certified` (by sigma and tau),
    `scaling` (image scaling attacks by resizer and guard), `scaling_detectors` (their AUC and TPR), `detection` (the
    same of detectors of attacked images), `defenses` (the worst case of each, beside the bare model's), `masking` (the
    signs of masked gradients); of a membership experiment `privacy` (defense x attack, in csv a row an attack, the
    columns of `privacy_tables.FIELDS`; the default of a run with nothing else), `privacy_classes`, `privacy_groups`,
    `poison`, and `joint` (robustness beside leakage). quantity: of `QUANTITIES`, for pivot and transfer; miou unless
    given. attack, eps (in [0, 1]): those cells alone, beside the clean ones.
    In csv, numbers keep their full precision, shares are in [0, 1], and what is missing is empty; elsewhere shares
    are in percent. linf, l2, forwards, backwards and seconds are means over the images.
    Raises UserError for a word that it does not know, and where no cell fits.
    """
    _known("format", format, WRITERS)
    alone = not results.cells and results.privacy is not None
    form = form or ("privacy" if alone else "long" if format == "csv" else "pivot")
    _known("form", form, FORMS)
    if alone and form in CELLS:
        forms = ", ".join(PRIVATE)
        raise UserError(f"table: {results.name} holds a membership experiment alone; its forms are {forms}")
    if quantity is not None:
        _known("quantity", quantity, QUANTITIES)
        if form not in ("pivot", "transfer"):
            raise UserError(f"table: form {form!r} takes no quantity; pivot and transfer do")
    rows = _chosen(summarise(results), attack, eps)
    return WRITERS[format](FORMS[form](results, rows, quantity or "miou", format == "csv"))


def pivot(results: Results, rows: Sequence[Row], quantity: str, exact: bool) -> Grid:
    """Model x attack by budget, the clean value first; attacks that find their own norm under `own`."""
    direct = [row for row in rows if row.direct]
    attacked = {row.name for row in direct}
    lines = {_line(row): row for row in rows if row.direct or (row.clean and row.name not in attacked)}
    cells = {(_line(row), row.norm, row.eps): row for row in direct}
    norms = unique(row.norm for row in direct)
    budgets = sorted({(row.norm, row.eps) for row in direct}, key=lambda b: (norms.index(b[0]), _size(b[1])))
    told = [
        "model",
        *["defense"] * (len({row.defense for row in rows}) > 1),
        *["threat"] * (len({row.threat for row in direct}) > 1),
        "attack",
    ]
    body = []
    for line, first in lines.items():
        values = [clean_of(rows, first), *(cells.get((line, *budget)) for budget in budgets)]
        shares = [getattr(row, quantity) if row else math.nan for row in values]
        body.append([*(getattr(first, word) for word in told), *(_share(share, exact) for share in shares)])
    heads = [f"{norm} {show_eps(eps, norm)}" if len(norms) > 1 else show_eps(eps, norm) for norm, eps in budgets]
    own = "; own: the attack finds its own norm" if any(eps is None for _, eps in budgets) else ""
    title = f"{results.name}: {QUANTITIES[quantity]} in percent by budget eps{own}"
    return Grid(title, [*told, "clean", *heads], body, len(told))


def long(results: Results, rows: Sequence[Row], quantity: str, exact: bool) -> Grid:
    """A row a cell."""

    def shown(row: Row, field: str) -> str:
        value = getattr(row, field)
        if isinstance(value, str | int):
            return str(value)
        if exact:
            return _full(value)
        if field == "eps":
            return show_eps(value, row.norm)
        if field in SHARES:
            return percent(value)
        if field == "linf" and not math.isnan(value):
            return show_eps(value, "linf")
        return DASH if math.isnan(value) else f"{value:.4g}"

    title = f"{results.name}: every cell; shares in percent; linf, l2, passes and seconds are means over the images"
    return Grid(title, FIELDS, [[shown(row, field) for field in FIELDS] for row in rows], 5)


def transfer(results: Results, rows: Sequence[Row], quantity: str, exact: bool) -> Grid:
    """Source x target; on the diagonal the attack on the model itself."""
    matrices = transfers(rows, quantity)
    if not matrices:
        raise UserError(f"table: {results.name} holds no such transfer cell; set `transfer: true` in its spec")
    targets = unique(target for matrix in matrices for target in matrix.targets)
    body = [
        [
            matrix.attack,
            _full(matrix.eps) if exact else show_eps(matrix.eps, matrix.norm),
            source,
            *(_share(matrix.values.get((source, target), math.nan), exact) for target in targets),
        ]
        for matrix in matrices
        for source in matrix.sources
    ]
    title = f"{results.name}: {QUANTITIES[quantity]} in percent, attacked on the source and scored on each target"
    return Grid(title, ["attack", "eps", "source", *targets], body, 3)


class Matrix:
    """One attack at one budget: `values[source, target]`, in the order of the plan."""

    def __init__(self, rows: Sequence[Row], attack: str, norm: str, eps: float | None, quantity: str) -> None:
        self.attack, self.norm, self.eps = attack, norm, eps
        at = [r for r in rows if not r.clean and (r.attack, r.norm, r.eps) == (attack, norm, eps)]
        moved = [row for row in at if row.source]
        self.sources = unique(row.source for row in moved)
        models = {row.name for row in rows}  # an ensemble is a source alone
        self.targets = unique([*(name for name in self.sources if name in models), *(row.name for row in moved)])
        own = {(row.name, row.name): getattr(row, quantity) for row in at if row.threat == "white-box"}
        self.values = own | {(row.source, row.name): getattr(row, quantity) for row in moved}


def transfers(rows: Sequence[Row], quantity: str) -> list[Matrix]:
    """A matrix for each attack and budget with transfer cells; the budgets of an attack from small to large."""
    keys = unique((row.attack, row.norm, row.eps) for row in rows if row.source)
    order = unique(attack for attack, _, _ in keys)
    keys.sort(key=lambda key: (order.index(key[0]), key[1], _size(key[2])))
    return [Matrix(rows, *key, quantity) for key in keys]


def classes(results: Results, rows: Sequence[Row], quantity: str, exact: bool) -> Grid:
    """IoU of each class, clean and under each direct attack."""
    shown = [row for row in rows if not row.source]
    body = [
        [
            row.name,
            row.label,
            (_full(row.eps) if exact else show_eps(row.eps, row.norm)),
            *(_share(value, exact) for value in row.iou_by_class),
        ]
        for row in shown
    ]
    title = f"{results.name}: IoU of each class in percent"
    return Grid(title, ["model", "attack", "eps", *results.class_names], body, 3)


def sizes(results: Results, rows: Sequence[Row], quantity: str, exact: bool) -> Grid:
    """Mean IoU of what covers under 1 %, under 10 % and more of its image, clean and under each attack."""
    body = [
        [
            row.name,
            row.label,
            (_full(row.eps) if exact else show_eps(row.eps, row.norm)),
            *(_share(share, exact) for table in (row.iou_by_size, row.iou_by_size_8bit) for share in table.values()),
        ]
        for row in rows
    ]
    names = [*confusion.SIZES, *(f"{name}_8bit" for name in confusion.SIZES)]
    title = f"{results.name}: mean IoU in percent of the classes in an image by the share of it that they cover"
    return Grid(title, ["model", "attack", "eps", *names], body, 3)


FORMS: dict[str, Callable[[Results, Sequence[Row], str, bool], Grid]] = {
    "pivot": pivot, "long": long, "transfer": transfer, "classes": classes, "sizes": sizes, "certified": certified.grid,
    "scaling": scaling.grid, "scaling_detectors": scaling.detection, "detection": detection.grid,
    "defenses": verdict.table, "masking": masking.table,
}  # fmt: skip
CELLS = ("pivot", "long", "transfer", "classes", "sizes")
"""Those that need cells, and do not say so themselves."""
PRIVATE = {
    "privacy": privacy_tables.privacy, "privacy_classes": privacy_tables.classes,
    "privacy_groups": privacy_tables.groups, "poison": privacy_beside.poison, "joint": privacy_beside.joint,
}  # fmt: skip
FORMS |= PRIVATE


def _chosen(rows: Sequence[Row], attack: str | None, eps: float | None) -> list[Row]:
    attacked = [row for row in rows if not row.clean]
    if attack is not None:
        _known("attack", attack, unique(row.attack for row in attacked))
        attacked = [row for row in attacked if row.attack == attack]
    if eps is not None:
        there = ", ".join(unique(show_eps(row.eps, row.norm) for row in attacked))
        attacked = [row for row in attacked if row.eps is not None and math.isclose(row.eps, eps, rel_tol=1e-6)]
        if not attacked:
            raise UserError(f"table: no attack was run at eps {eps:g}; there are: {there}")
    kept = {id(row) for row in attacked}
    return [row for row in rows if row.clean or id(row) in kept]


def _known(what: str, word: str, options: Collection[str]) -> None:
    if word not in options:
        raise UserError(f"table: no {what} is called {word!r}{suggest(word, options)}; there are: {', '.join(options)}")


def _line(row: Row) -> tuple[str, str, str, str]:
    return row.model, row.defense, row.threat, row.attack


def _size(eps: float | None) -> float:
    """Own norms sort last."""
    return math.inf if eps is None else eps


def _share(value: float, exact: bool) -> str:
    return _full(value) if exact else percent(value)


def _full(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else repr(value)
