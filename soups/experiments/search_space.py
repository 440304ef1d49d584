"""Say how the hyper-parameters that every sweep has are drawn."""

from collections.abc import Callable, Mapping
from typing import Any

from soups.train import search


def common_choices(config: Mapping[str, Any]) -> dict[str, Callable]:
    """Return the distributions of learning rate, weight decay, smoothing and mixup between the ends in `config`.

    For `soups.train.search.random`. The first two are log-uniform; half of the members have none of the last two.
    """
    return {
        "learning_rate": search.log_uniform(*config["learning_rate"]),
        "weight_decay": search.log_uniform(*config["weight_decay"]),
        "label_smoothing": search.zero_or(0.5, search.uniform(*config["label_smoothing"])),
        "mixup": search.zero_or(0.5, search.uniform(*config["mixup"])),
    }
