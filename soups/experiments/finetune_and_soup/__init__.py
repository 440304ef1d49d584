"""Fine-tune a pool from one start, cook soups from it, and report: the main experiment."""

from soups.experiments.finetune_and_soup.run import run as run
