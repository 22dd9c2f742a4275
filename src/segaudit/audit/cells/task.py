"""What a worker is asked to do."""

from __future__ import annotations

from dataclasses import dataclass

from segaudit.audit.parts import Part
from segaudit.audit.plan import Job


@dataclass(frozen=True)
class Task:
    """One shard of one cell, with all that a worker on any machine needs.

    fitting: instead, fit the cell's attack; ids are then all images of the run.
    """

    job: Job
    part: int
    ids: tuple[str, ...]
    shown: frozenset[str]
    data: Part
    store: str
    precision: str
    batch: int
    seed: int
    fitting: bool = False

    @property
    def stage(self) -> int:
        """When its turn is: what is fitted (0), the cells that make their images (1), those that borrow them (2)."""
        return 0 if self.fitting else 1 if self.job.source is None else 2
