"""Simulated tasks for policies, by name; `base.Task` is their interface.

Usage:
    task = load_task("pusht_toy")
    state = task.start(seed=0, episodes=np.arange(100))
    state = task.step(state, actions)
"""

from data_pipeline.errors import UserError
from data_pipeline.tasks.base import Task, uniforms
from data_pipeline.tasks.pusht_toy import PushToy

__all__ = ["TASKS", "Task", "load_task", "uniforms"]

TASKS: dict[str, Task] = {task.name: task for task in (PushToy(),)}


def load_task(name: str) -> Task:
    """The task of that name.

    Raises:
        UserError: there is none.
    """
    if name not in TASKS:
        raise UserError(f"unknown task {name!r}; the known ones are {', '.join(TASKS)}")
    return TASKS[name]
