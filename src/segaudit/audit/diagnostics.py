"""The cells that the masking diagnostics need beside those of a spec, on a few of its images."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

from segaudit import registry
from segaudit.audit import plan as planning
from segaudit.audit.keys import Contents
from segaudit.audit.plan import Job, Plan
from segaudit.audit.spec import AttackSpec, RunSpec, Transfer
from segaudit.audit.store import Store
from segaudit.types import RAISED, TWICE, Cell, Records

UNBOUNDED = AttackSpec(name="pgd", args={"steps": 40, "start": False})
"""The attack with every picture in reach. It starts at the image, as noise of that size would fool any model."""
USUAL = AttackSpec(name="pgd", args={"steps": 20})
"""The iterated attack of a spec that has none in Linf."""
EPS = 8 / 255
"""The budget of a spec that has none in Linf."""
EOT = 2
"""How many times the draws of a random defense an attack has that takes more of them."""


def plan(planned: Plan, spec: RunSpec, ids: Sequence[str], contents: Contents) -> Plan:
    """The cells of the diagnostics that are not planned already, of each model behind each of the spec's defenses.

    An image's random streams are its own, so that a row of a cell on all images is as good as one on a few. On an
    image, each model costs a gradient of one step, twice the steps (or draws) of the spec's iterated Linf attack of the
    most steps, 40 steps without a bound, 10 draws of noise and the queries of Square. Where twice the steps are above
    `max_steps` that attack has so many instead, with its own draws, or is not run again if it has them already.
    """
    few = spec.diagnosed().images(ids)
    known = {job.cell for job in planned.jobs}
    jobs = {job.key: job for job in _jobs(spec, few, contents) if job.cell not in known} if few else {}
    return Plan(tuple(jobs.values()), planning.cut(few) if jobs else (), ())


def index(planned: Plan) -> dict[str, Any]:
    """What the report needs of the plan; nothing of an empty one."""
    cells = [{"key": job.key, "cell": asdict(job.cell)} for job in planned.jobs]
    return {"diagnostics": {"jobs": cells, "shards": planned.shards}} if cells else {}


def read(store: Store, index: dict[str, Any]) -> tuple[list[tuple[Cell, Records]], int]:
    """The cells with a finished part, and how many parts are lacking."""
    own = index.get("diagnostics", {"jobs": (), "shards": ()})
    done = {job["key"]: len(store.parts("cells", job["key"])) for job in own["jobs"]}
    cells = [(Cell(**job["cell"]), store.read_records(job["key"])) for job in own["jobs"] if done[job["key"]]]
    return cells, sum(len(own["shards"]) - count for count in done.values())


def _jobs(spec: RunSpec, few: Sequence[str], contents: Contents) -> Iterator[Job]:
    (own, eps), asked = _iterated(spec), spec.diagnosed()
    steps = _steps(own)
    more = min(2 * steps, asked.max_steps)
    longer = own.model_copy(update={"args": own.args | {"steps": more}})
    square = AttackSpec(name="square", args={"steps": asked.queries})

    def made(attack: AttackSpec, radius: float) -> Iterator[Job]:
        """The attack on every model behind every defense, those without a gradient left out where it needs one."""
        blind = registry.gradient_free(attack.name)
        models = [model for model in spec.models if blind or model.title() not in contents.opaque]
        over = {"models": models, "attacks": [attack], "eps": [radius], "threats": ["adaptive"], "draws": 1}
        small = spec.model_copy(update=over | {"transfer": Transfer(each=False), "keep": False, "detection": None})
        known = contents if blind else replace(contents, opaque=frozenset())
        jobs = planning.plan(small, few, known).jobs if models else ()
        yield from (replace(job, show=False) for job in jobs if job.attack is not None)

    for attack in (AttackSpec(name="noise"), square, AttackSpec(name="fgsm"), own):
        yield from made(attack, eps)
    told = f"{TWICE}steps" if more == 2 * steps else f"{RAISED}{more} steps"
    for one, long in zip(made(own, eps), made(longer, eps), strict=True) if more > steps else ():
        if more == 2 * steps and one.defense.label() in contents.random:
            key = hashlib.sha256(f"{one.key} in expectation over {EOT}".encode()).hexdigest()[:20]
            yield replace(one, key=key, eot=EOT, cell=replace(one.cell, attack=f"{own.label()}{TWICE}draws"))
        else:
            yield replace(long, cell=replace(one.cell, attack=own.label() + told))
    yield from made(UNBOUNDED, 1.0)


def _iterated(spec: RunSpec) -> tuple[AttackSpec, float]:
    """The spec's iterated Linf attack of the most steps, and its largest budget that leaves pictures out of reach."""
    own = max(spec.attacks, key=_steps)
    in_linf = any(attack.norm() == "linf" and registry.accepts("attack", attack.name, "eps") for attack in spec.attacks)
    eps = [eps for eps in spec.eps if eps < 1 and in_linf]
    return own if _steps(own) else USUAL, max(eps, default=EPS)


def _steps(attack: AttackSpec) -> int:
    """The steps of an untargeted attack in a Linf ball that follows the gradient image by image; 0 for any other."""
    steps = attack.args.get("steps", registry.default("attack", attack.name, "steps"))
    function = registry.load("attack", attack.name)
    fits = (
        attack.target is None
        and attack.norm() == "linf"
        and registry.accepts("attack", attack.name, "eps")
        and not registry.gradient_free(attack.name)
        and not any(hasattr(function, word) for word in ("fit", "members"))
    )
    return steps if fits and type(steps) is int and steps > 1 else 0
