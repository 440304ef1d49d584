"""Run whole experiments from a config: in the folder of each, run.py is read from top to bottom."""

EXPERIMENTS = ("finetune_and_soup", "multi_task", "rebasin")  # what a config's field "experiment" may name
