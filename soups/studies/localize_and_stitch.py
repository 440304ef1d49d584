"""Merge encoders of many tasks of texts into one, as Localize-and-Stitch does, against multi-task learning.

He et al., "Localize-and-Stitch: Efficient model merging via sparse task arithmetic", 2024, arXiv 2408.13656: one
encoder is fine-tuned on each task with few examples, by prompts whose label words are scored at the mask, or with
linear heads; what members and merges reach is compared, on the same examples and in as many steps, with one network
that learns all tasks at once, which the paper leaves out.
"""

import functools

from soups.studies import multi_task, text_tasks
from soups.studies.study import Study

FIELDS = text_tasks.FIELDS | {
    "": text_tasks.FIELDS[""] + " methods only?",
    "joint": "learning_rates batch_size",
    "examples": "few batch_size",
}

run = Study(
    check=functools.partial(multi_task.check_config, fields=FIELDS),
    scenes=functools.partial(text_tasks.text_scenes, text_tasks.TextTasks),
    cook=multi_task.cook,
    folders=("pool", "merged"),
    changeable=("methods", "only"),
)
