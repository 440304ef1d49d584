"""Merge members of different tasks, against the members and multi-task learning."""

from soups.experiments.multi_task.run import check_config as check_config
from soups.experiments.multi_task.run import run as run
