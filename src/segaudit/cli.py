"""The command line: every command reads its arguments, calls one function of a room below, and prints."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from segaudit import __version__, registry, running
from segaudit.types import UserError

app = typer.Typer(
    name="segaudit",
    help="Audit image segmentation models: what fools them, what a defense buys, what they give away.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

DEMO = Path(__file__).parent / "audit" / "demo.yaml"
Out = Annotated[str | None, typer.Option(help="Where the run is kept: a folder or any fsspec path [runs/NAME].")]
Workers = Annotated[int | None, typer.Option(min=1, help="Worker processes; no result depends on it [one a core].")]
KINDS = {"attacks": "attack", "targets": "target", "defenses": "defense", "membership": "membership", "models": "model"}
KINDS |= {"data": "data", "recipes": "recipe", "scaling": "scaling", "guards": "guard"}
KINDS |= {"membership_defenses": "membership_defense", "triggers": "trigger"}
KINDS |= {"scaling_detectors": "scaling_detector", "detectors": "detector", "purifiers": "purifier"}


def _version(asked: bool) -> None:
    if asked:
        print(__version__)
        raise typer.Exit


@app.callback()
def _root(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True)] = False,
) -> None:
    _debug.on = debug


@app.command()
def demo(out: Out = None, workers: Workers = None) -> None:
    """A whole small audit of the bundled models on the embedded scenes, and its page."""
    running.run(DEMO, out, workers, None, None)


@app.command()
def run(
    spec: Annotated[Path, typer.Argument(help="What to audit (YAML); see the README.")],
    out: Out = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only that many images, for a quick look.")] = None,
    workers: Workers = None,
    ray: Annotated[str | None, typer.Option(help="A Ray cluster's address, or `local`.")] = None,
) -> None:
    """Audit models: the main job. The same command resumes."""
    running.run(spec, out, workers, ray, limit)


@app.command()
def report(path: Annotated[str, typer.Argument(metavar="RUN", help="The run's folder.")]) -> None:
    """Build the page of a run again, from its store alone."""
    print(running.report(path))


@app.command()
def table(
    path: Annotated[str, typer.Argument(metavar="RUN", help="The run's folder.")],
    form: Annotated[
        str,
        typer.Option(
            help="pivot, long, transfer, classes, sizes, certified, scaling, scaling_detectors, detection, defenses, "
            "masking, privacy, privacy_classes, privacy_groups, poison or joint [csv: long]."
        ),
    ] = "",
    quantity: Annotated[
        str,
        typer.Option(
            help="miou, image_miou, iou_ratio, accuracy (or with _8bit), dice, success, spread, goal_miou or "
            "goal_accuracy [miou]."
        ),
    ] = "",
    format: Annotated[str, typer.Option(help="markdown, latex or csv.")] = "markdown",
) -> None:
    """Print a run's tables."""
    from segaudit.audit.run import results
    from segaudit.report import doubts, tables

    found = results(path)
    for line in doubts.unfinished(found):
        print(f"segaudit: {line}", file=sys.stderr)
    print(tables.table(found, format, form=form or None, quantity=quantity or None), end="")


@app.command()
def check(
    path: Annotated[str, typer.Argument(metavar="RUN", help="The run's folder.")],
    require: Annotated[
        list[str],
        typer.Option(help="What must hold, repeated: 'auc<0.6', 'tpr_1[net + dp]<0.05', 'miou@8/255>0.3'."),
    ],
) -> None:
    """Exit with status 1, and say why, where a run falls short of conditions."""
    from segaudit.audit.run import results
    from segaudit.report import gate

    found = results(path)
    short = gate.check(found, require)
    for line in gate.warnings(found):
        print(f"segaudit: {line}", file=sys.stderr)
    for line in short:
        print(line)
    if short:
        raise typer.Exit(1)
    for condition in require:
        print(f"{condition}: holds")


@app.command()
def attack(
    image: Annotated[Path, typer.Argument(help="The picture to attack.")],
    spec: Annotated[Path, typer.Option(help="A run's spec, whose data and models are meant [the demo's].")] = DEMO,
    name: Annotated[str, typer.Option("--attack", help="The attack, by name.")] = "pgd",
    eps: Annotated[str, typer.Option(help="The budget, such as 8/255.")] = "8/255",
    model: Annotated[str | None, typer.Option(help="Which of the spec's models, by its label [the first].")] = None,
    mask: Annotated[
        Path | None, typer.Option(help="The picture's mask; without it the model's own prediction.")
    ] = None,
    out: Annotated[Path, typer.Option(help="The folder for the pictures.")] = Path("attack"),
) -> None:
    """Attack one image and write the pictures: adversarial, perturbation, prediction before and after."""
    from segaudit.audit.one import attack_one

    for line in attack_one(image, spec, name, eps, model, mask, out):
        print(line)


@app.command()
def scaling(
    spec: Annotated[Path, typer.Argument(help="A run's spec, whose data and models are meant, and its scaling block.")],
    library: Annotated[str | None, typer.Option(help="Whose resizer is attacked: pil, opencv or torch [pil].")] = None,
    method: Annotated[str | None, typer.Option(help="Such as bilinear [all that the library has].")] = None,
    factor: Annotated[
        float | None, typer.Option(help="How much larger the pictures are than the data's size [their own size].")
    ] = None,
    eps: Annotated[
        str | None, typer.Option(help="How far the resized picture may be from the hidden one [2/255].")
    ] = None,
    guard: Annotated[list[str] | None, typer.Option(help="What stands before the resizer, repeated [none].")] = None,
    detector: Annotated[list[str] | None, typer.Option(help="What is to notice the attack, repeated.")] = None,
    limit: Annotated[int | None, typer.Option(min=2, help="Only that many images.")] = None,
) -> None:
    """Hide in each picture another one that a resizer brings out, and print what the models see."""
    from segaudit.audit import resizing
    from segaudit.audit import scaling as room
    from segaudit.report import grid
    from segaudit.report import scaling as told

    asked = running.read(spec, limit)
    block = resizing.changed(
        asked.scaling,
        library=library,
        methods=[method] if method else None,
        factor=factor,
        eps=eps,
        guards=guard,
        detectors=detector,
    )
    with running.bar("hiding") as (bar, task):
        rows = room.scale_spec(
            asked,
            block,
            lambda done, total: bar.update(task, completed=done, total=total, description=f"picture {done}/{total}"),
        )
    print(grid.markdown(told.attacks(rows)), end="")
    if block.detectors:
        print("\n" + grid.markdown(told.detectors(rows)), end="")


@app.command()
def train(
    spec: Annotated[Path, typer.Argument(help="What to train (YAML), or the weights to make again from their card.")],
    out: Annotated[
        Path | None, typer.Option(help="The folder for weights, curves, metrics and checkpoint [runs/NAME].")
    ] = None,
) -> None:
    """Train a network from a spec; the same command resumes."""
    from segaudit.audit import train as room
    from segaudit.report.learning import learning
    from segaudit.training.loop import Progress as Step
    from segaudit.training.loop import history

    asked = room.read(spec)
    folder = out or Path("runs") / asked.name
    with running.bar("training") as (bar, task):

        def tell(step: Step) -> None:
            score = f" mIoU {step.miou:.3f}" if step.miou is not None else ""
            bar.update(
                task,
                total=asked.epochs * step.steps,
                completed=step.epoch * step.steps + step.step,
                description=f"epoch {step.epoch + 1}/{asked.epochs} loss {step.loss:.3f}{score}",
            )

        path, score = room.train(asked, folder, tell, room.card_of(spec))
    (folder / "curves.html").write_text(learning(asked.name, history(folder), score))
    print(path)
    for key, value in score.items():
        print(f"{key} {value:.4f}")


@app.command()
def membership(
    victim: Annotated[str, typer.Option(help="The encoder of the victim's U-Net, by smp's name.")] = "resnet34",
    shadow: Annotated[str | None, typer.Option(help="That of the shadow's [the victim's].")] = None,
    trainsize: Annotated[int | None, typer.Option(min=1, help="Members; as many others [a fifth of the data].")] = None,
    defensetype: Annotated[list[str] | None, typer.Option(help="1 to 7 or a name, repeated [1].")] = None,
    triggertype: Annotated[str, typer.Option(help="What poisoned images show: line or square.")] = "line",
    triggersize: Annotated[float, typer.Option(help="Its size in pixels; below 1 a share of the height.")] = 0.1,
    triggerval: Annotated[float, typer.Option(help="Its value, to 255; to 1, of 0 to 1.")] = 1.0,
    poison: Annotated[float, typer.Option(help="The probability that a training image is poisoned.")] = 0.0,
    data: Annotated[str, typer.Option(help="The data as in a spec: a name, or {name: kvasir, root: ...}.")] = "scenes",
    size: Annotated[int | None, typer.Option(min=1, help="Height and width that images are resized to.")] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Of each network.")] = 70,
    out: Out = None,
    workers: Workers = None,
) -> None:
    """Who was in the training set: write the spec that these flags stand for, and run it."""
    from segaudit.audit.membership import command
    from segaudit.privacy.defenses import named

    made = command.spec_of(
        data, victim, shadow, trainsize, [named(own) for own in defensetype or []], triggertype, triggersize,
        triggerval, poison, size, epochs,
    )  # fmt: skip
    out = out or f"runs/{made['name']}"
    running.run(command.write(made, out), out, workers, None, None)


@app.command("list")
def list_parts(kind: Annotated[str, typer.Argument(help=", ".join(KINDS))]) -> None:
    """What there is, with one line and the source of each."""
    if kind not in KINDS:
        raise UserError(f"there is no list of {kind!r}{registry.suggest(kind, KINDS)}; there are: {', '.join(KINDS)}")
    rows = Table(box=None, pad_edge=False)
    for title in (kind, "", "source"):
        rows.add_column(title, no_wrap=title == kind)
    for name, line, source in registry.describe(KINDS[kind]):
        rows.add_row(name, line.removesuffix("."), source.removesuffix("."))
    Console().print(rows)


class _Debug:
    on = False


_debug = _Debug()


def main(arguments: list[str] | None = None) -> Any:
    """The entry point: for what a person can mend one readable line and exit status 2, no traceback."""
    try:
        app(args=arguments)
    except UserError as error:
        if _debug.on:
            traceback.print_exc()
        print(f"segaudit: {' '.join(str(error).splitlines())}", file=sys.stderr)
        sys.exit(2)
    except Exception as error:
        if _debug.on:
            raise
        line = str(error).partition("\n")[0]
        print(f"segaudit: {type(error).__name__}: {line} (`segaudit --debug` shows where)", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
