"""Run whole studies from a config: in the folder of each, run.py is read from top to bottom."""

# what a config's field "study" may name
STUDIES = {
    name: f"soups.experiments.{name}:run"
    for name in ("finetune_and_soup", "imagenet_finetune", "imagenet_soups", "multi_task", "rebasin")
}
OF_SEVERAL_PROCESSES = ("finetune_and_soup", "imagenet_finetune", "imagenet_soups")  # which run on several hosts
