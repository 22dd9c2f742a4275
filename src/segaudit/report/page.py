"""One self-contained page of a run: it opens from disk, and loads nothing."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from segaudit.report import certified, detection, masking, privacy, scaling, sheets, signs, verdict
from segaudit.report.curves import curves
from segaudit.report.doubts import doubts
from segaudit.report.grid import Grid, comma
from segaudit.report.headline import headline, norms, notes
from segaudit.report.pictures import gallery, pack
from segaudit.report.sheets import Box, Sheet
from segaudit.report.summary import Row, levels, show_eps, summarise, unique
from segaudit.report.tables import QUANTITIES, long, pivot
from segaudit.types import Results

SESSION = ("started", "finished", "computed", "seconds")
"""What differs between the sessions of a run; the rest is told of the last one."""


def page(results: Results) -> str:
    """The HTML of a run. Scripts, styles and pictures are inside; its content policy forbids any request."""
    rows = summarise(results)
    found = masking.diagnose(results, rows)
    doubted = {(d.model, d.defense) for d in found if d.raised}
    defended = results.diagnostics or any(row.defense != "none" for row in rows)
    drawn, shown = curves(rows), gallery(results, rows)
    watched = detection.noticed(results)
    private = _private(privacy.section(results, rows))
    alone = private is not None and not rows
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    strong = next(filter(None, (sheets.typical(rows, row) for row in rows if row.clean)), None)
    return environment.get_template("page.html.j2").render(
        name=results.name,
        headline=private["lead"]
        if private and alone
        else headline(rows, {row.name for row in rows if (row.model, row.defense) in doubted}),
        notes=notes(rows),
        doubts=[*doubts(results, rows, found), *(private["doubts"] if private else ())],
        alone=alone,
        private=private,
        verdicts=[made.line for made in verdict.verdicts(results, found, rows)],
        masking=_sheet(masking.grid(found, results.name, False)) if defended else None,
        margin=f"{100 * signs.MARGIN:g}",
        spent=masking.spent(results),
        facts=_facts(results, rows) if not alone else _asked(results),
        spec=yaml.safe_dump(
            _plain(results.spec), sort_keys=False, default_flow_style=None, allow_unicode=True, width=110
        ),
        log=_log(results.log),
        glance=sheets.glance(rows),
        curves=drawn,
        numbers=[_sheet(pivot(results, rows, quantity, False)) for quantity in QUANTITIES],
        own=sheets.own(rows),
        goals=sheets.goals(rows),
        matrices=sheets.matrices(rows),
        classes=sheets.classes(results, rows),
        sizes=sheets.sizes(rows),
        rounding=sheets.rounding(rows),
        cost=sheets.cost(rows),
        certified=_sheet(certified.grid(results, rows, "", False)) if results.votes else None,
        radii=certified.radii(results),
        scaling=[_sheet(grid) for grid in scaling.grids(results)],
        guards=scaling.lines(results),
        detection=_sheet(detection.table(watched, results.name, False)) if watched else None,
        detected=detection.lines(watched),
        rocs=detection.figures(watched),
        legend=[(name, sheets.colour(results, i)) for i, name in enumerate(results.class_names)],
        pictures=shown,
        data={
            "name": results.name,
            "curves": drawn,
            "pictures": shown and pack(shown),
            "typical": strong.attack if strong else "",
        },
        csv=base64.b64encode(comma(long(results, rows, "miou", True)).encode()).decode(),
        plotly=Markup(get_plotlyjs()),
    )


def _facts(results: Results, rows: Sequence[Row]) -> list[tuple[str, str]]:
    """What was run, in a few lines."""
    direct = [row for row in rows if row.direct]
    moved = sum(bool(row.source) for row in rows)
    images = unique(str(row.images) for row in rows)
    facts = [
        ("images", " to ".join(dict.fromkeys([images[0], images[-1]])) if images else "0"),
        ("classes", str(len(results.class_names))),
        ("models", ", ".join(unique(row.name for row in rows))),
        ("attacks", ", ".join(unique(row.attack for row in direct)) or "none"),
        *(
            (f"{norm.capitalize()} budgets", ", ".join(show_eps(eps, norm) for eps in levels(rows, norm)))
            for norm in norms(rows)
        ),
        ("cells", f"{len(rows)}, {moved} of them transfers" if moved else str(len(rows))),
    ]
    return facts + _asked(results)


def _asked(results: Results) -> list[tuple[str, str]]:
    """What of the spec is told in any case."""
    return [(key, _told(results.spec[key])) for key in ("data", "seed") if key in results.spec]


def _private(made: dict[str, Any] | None) -> dict[str, Any] | None:
    """The section of a membership experiment with its tables as the page draws them."""
    if made is None:
        return None
    drawn = {key: _sheet(value) if isinstance(value, Grid) else value for key, value in made.items()}
    return drawn | {"csv": base64.b64encode(made["csv"].encode()).decode()}


def _log(log: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The log in lines: one a session of the run, then what the last session ran on."""
    sessions = [session for session in log.get("sessions", ()) if isinstance(session, Mapping)]
    plain = {key: value for key, value in log.items() if key not in ("sessions", "version", "name")}
    lines = []
    for session in sessions:
        times = f"from {_time(session.get('started'))} to {_time(session.get('finished'))}"
        lines.append(("session", f"{times}; {session.get('computed', 0)} parts in {session.get('seconds', 0):.0f} s"))
    last = {} if not sessions else {k: v for k, v in sessions[-1].items() if k not in SESSION}
    return lines + [(str(key), shorten(_told(value), 400)) for key, value in (plain | last).items()]


def _time(stamp: Any) -> str:
    """`2026-01-31 09:30:00 UTC` of what the log noted; a session that runs or was killed has no end."""
    return str(stamp).replace("T", " ").replace("+00:00", " UTC") if stamp else "a time that was not noted"


def _sheet(grid: Grid) -> Sheet:
    return Sheet(grid.title, grid.header, [[Box(cell) for cell in row] for row in grid.rows], grid.words)


def _told(value: Any) -> str:
    """A value of the spec or the log in one line."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_told(inner)}" for key, inner in value.items() if inner not in (None, {}, ""))
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_told, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _plain(value: Any) -> Any:
    """The same in what YAML knows."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return value if isinstance(value, (str, int, float, bool)) or value is None else str(value)
