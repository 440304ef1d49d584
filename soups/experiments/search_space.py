"""Say how the hyper-parameters that every sweep has are drawn."""

from collections.abc import Callable, Mapping
from typing import Any

from soups.train import sweep


def common_choices(config: Mapping[str, Any]) -> dict[str, Callable]:
    """Return the distributions of learning rate, weight decay, smoothing and mixup between the ends in `config`.

    For `soups.train.sweep.random`. The first two are log-uniform; half of the members have none of the last two.
    """
    return {
        "learning_rate": sweep.log_uniform(*config["learning_rate"]),
        "weight_decay": sweep.log_uniform(*config["weight_decay"]),
        "label_smoothing": sweep.zero_or(0.5, sweep.uniform(*config["label_smoothing"])),
        "mixup": sweep.zero_or(0.5, sweep.uniform(*config["mixup"])),
    }
