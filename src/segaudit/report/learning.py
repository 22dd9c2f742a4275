"""The curves of a training on one self-contained page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from plotly.subplots import make_subplots


def learning(name: str, epochs: Sequence[Mapping[str, float]], score: Mapping[str, float]) -> str:
    """The HTML of a training: the loss on the left axis; held-out mIoU and pixel accuracy, in percent, on the right.

    epochs: lines with `epoch` (from 0) and `loss`, some with `miou` and `accuracy`. score: at the end ({}: nothing
    was held out).
    """
    figure = make_subplots(specs=[[{"secondary_y": True}]])
    figure.add_scatter(x=[line["epoch"] + 1 for line in epochs], y=[line["loss"] for line in epochs], name="loss")
    scored = [line for line in epochs if "miou" in line]
    if score and epochs:
        scored.append({"epoch": epochs[-1]["epoch"], **score})
    for key, title in (("miou", "held-out mIoU"), ("accuracy", "held-out pixel accuracy")):
        if scored:
            x, y = [line["epoch"] + 1 for line in scored], [100 * line[key] for line in scored]
            figure.add_scatter(x=x, y=y, name=title, mode="lines+markers", secondary_y=True)
    figure.update_layout(title=f"Training of {name}", template="plotly_white", hovermode="x unified")
    figure.update_xaxes(title="epoch", rangemode="tozero")
    figure.update_yaxes(title="training loss", rangemode="tozero", secondary_y=False)
    figure.update_yaxes(title="%", range=[0, 100], showgrid=False, secondary_y=True)
    html: str = figure.to_html(include_plotlyjs=True, config={"displaylogo": False})
    return html
