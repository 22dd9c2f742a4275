"""From a task to the part of the store that it is to write: each kind of cell has its own way."""

from __future__ import annotations

from segaudit.audit import votes
from segaudit.audit.batches import same_size
from segaudit.audit.cells import attacked, crafting, kept, watched
from segaudit.audit.cells.task import Task
from segaudit.audit.membership import work as membership
from segaudit.audit.store import Store
from segaudit.nn.precision import default_device, exact_on_cuda, prepare_process

Work = Task | membership.Step
"""What a worker is asked to do."""


def work(task: Work) -> None:
    """Compute a task and write its part."""
    prepare_process()
    exact_on_cuda()
    if isinstance(task, membership.Step):
        membership.work(task)
        return
    job, store, data = task.job, Store(task.store), kept.dataset(task.data)
    model = kept.model(job.model, data.class_names, job.defense)
    if job.smoothed is not None:
        shards = (shard.to(default_device()) for shard in same_size(data, task.ids))
        store.write_votes(job.key, task.part, votes.draw(job.smoothed, model, shards, task.batch, task.seed))
    elif job.watch is not None and task.fitting:
        watched.learn(job.watch, model, data, store, task.batch, task.seed)
    elif job.watch is not None and job.attack is None:
        own, deltas = same_size(data, task.ids), attacked.lent(task)
        scores = watched.score(job.watch, model, own, deltas, store, task.batch, task.seed)
        store.write_scores(job.key, task.part, *scores)
    else:
        maker = crafting.maker_of(task, model, data)
        if task.fitting:
            crafting.fit(task, maker)
        else:
            attacked.attacked(task, model, maker, data)
