"""The `certification` block of a spec: what is to be certified by randomised smoothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from segaudit import registry
from segaudit.audit.parts import Real, Strict, Tuned
from segaudit.defenses.certify import check


class Certification(Strict):
    """Certificates of every model of the run, for each sigma and tau; one of either may be a plain number.

    sigma: of the noise on images in [0, 1]. tau: the probability that a certified class is shown to exceed, from 0.5;
    the radius grows with it. n0, n: draws an image that choose the classes, and that test them. alpha: the chance that
    any certificate of an image is wrong. limit: that many of the run's images, evenly spread. denoisers: defenses that
    stand between noise and model; `denoiser: path` is short for the one that was trained to, which is
    `{name: denoise, denoiser: path}`. tau, alpha and correction may be changed later: nothing is drawn again for them.
    """

    sigma: list[Real] = Field([0.25], min_length=1)
    tau: list[Real] = Field([0.75], min_length=1)
    n0: int = Field(100, ge=1)
    n: int = Field(1000, ge=1)
    alpha: Real = 1e-4
    correction: Literal["holm", "bonferroni"] = "holm"
    limit: int | None = Field(None, ge=1)
    denoisers: list[Tuned] = Field([Tuned(name="none")], min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _one(cls, value: Any) -> Any:
        if not isinstance(value, Mapping) or "denoiser" not in value:
            return value
        if "denoisers" in value:
            raise ValueError("give denoiser or denoisers, not both: {name: denoise, denoiser: path} is one of them")
        own = {key: other for key, other in value.items() if key != "denoiser"}
        return own | {"denoisers": [{"name": "denoise", "denoiser": value["denoiser"]}]}

    @field_validator("sigma", "tau", mode="before")
    @classmethod
    def _several(cls, value: Any) -> Any:
        return value if isinstance(value, list) else [value]

    @field_validator("sigma", "tau")
    @classmethod
    def _sorted(cls, value: list[float]) -> list[float]:
        return sorted(set(value))

    @model_validator(mode="after")
    def _sound(self) -> Certification:
        for sigma in self.sigma:
            check(sigma=sigma)
        for tau in self.tau:
            check(tau=tau, n=self.n, alpha=self.alpha)
        labels = [denoiser.label() for denoiser in self.denoisers]
        for denoiser in self.denoisers:
            registry.check_arguments("defense", denoiser.name, denoiser.args, ("model",))
            if labels.count(denoiser.label()) > 1:
                raise ValueError(f"denoisers: {denoiser.label()!r} is there twice; leave one of them out")
        return self

    def images(self, ids: Sequence[str]) -> tuple[str, ...]:
        """The images of the run that are certified."""
        count = len(ids) if self.limit is None else min(self.limit, len(ids))
        return tuple(ids[i * len(ids) // count] for i in range(count))
