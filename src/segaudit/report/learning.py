"""The curves of a training on one self-contained page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from plotly.subplots import make_subplots

SCORES = {"miou": "held-out mIoU", "accuracy": "held-out pixel accuracy"}
DECIBELS = {"psnr": "held-out PSNR", "psnr_noisy": "of the noisy images"}
"""What is drawn of a score, in percent or in dB, and how it is called."""


def learning(name: str, epochs: Sequence[Mapping[str, float]], score: Mapping[str, float]) -> str:
    """The HTML of a training: the loss on the left axis, the held-out score on the right.

    That is mIoU and pixel accuracy in percent, of a denoiser the PSNR in dB, of others whatever they are scored by.
    epochs: lines with `epoch` (from 0) and `loss`, some with the score. score: at the end ({}: nothing was held out).
    """
    drawn, unit = (DECIBELS, "dB") if "psnr" in score else (SCORES, "%")
    if score and not drawn.keys() <= score.keys():
        drawn, unit = {key: f"held-out {key}" for key in score}, "score"
    figure = make_subplots(specs=[[{"secondary_y": True}]])
    figure.add_scatter(x=[line["epoch"] + 1 for line in epochs], y=[line["loss"] for line in epochs], name="loss")
    scored = [line for line in epochs if drawn.keys() <= line.keys()]
    if score and epochs:
        scored.append({"epoch": epochs[-1]["epoch"], **score})
    for key, title in drawn.items():
        if scored:
            x, y = [line["epoch"] + 1 for line in scored], [(100 if unit == "%" else 1) * line[key] for line in scored]
            figure.add_scatter(x=x, y=y, name=title, mode="lines+markers", secondary_y=True)
    figure.update_layout(title=f"Training of {name}", template="plotly_white", hovermode="x unified")
    figure.update_xaxes(title="epoch", rangemode="tozero")
    figure.update_yaxes(title="training loss", rangemode="tozero", secondary_y=False)
    figure.update_yaxes(title=unit, range=[0, 100] if unit == "%" else None, showgrid=False, secondary_y=True)
    html: str = figure.to_html(include_plotlyjs=True, config={"displaylogo": False})
    return html
