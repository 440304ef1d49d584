"""Run whole experiments from a config: each is one file, read from top to bottom."""

EXPERIMENTS = ("finetune_and_soup", "multi_task", "rebasin")  # what a config's field "experiment" may name
