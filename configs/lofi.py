"""Fine-tune by workers that do not communicate, and average once (lo-fi), against gradients that are all-reduced.

    python scripts/build_domains.py data
    python scripts/run.py --config configs/lofi.py --workdir runs/lofi --config.data_dir=data --config.seeds=10

EfficientNet-Lite0, pre-trained on ImageNet, is fine-tuned on two styles of drawing and tested on other images of these
and on the two other styles. All runs begin with one linear probe and take as many steps; all but one worker alone see
the same examples. Rates fall by a half cosine. The stages that are frozen are those of configs/recycling/domainbed.py.

The learning rate was not searched for; the baseline is also run at twice the rate, which its larger batches may bear.
`config.all_reduce` and `config.exchange` may change in a run that goes on: what is new is added to it.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config() -> ConfigDict:
    """Return the config of the experiment."""
    config = ConfigDict()
    config.study = config.name = "lofi"
    config.seeds = 1  # trials: each has splits and minibatches of its own
    config.first_seed = 0
    config.data_dir = placeholder(str)  # the folder of the sets
    config.dataset = "icons"
    config.test_domains = ("emoji", "line")  # which no worker sees
    config.image_size = 64

    config.model = ConfigDict(dict(arch="efficientnet-lite0", start=placeholder(str), frozen_stages=5, views=4))
    config.probe = ConfigDict(dict(strengths=(1e-3, 1e-2, 1e-1), max_iterations=100))

    config.workers = ConfigDict()
    config.workers.count = 4
    config.workers.steps = 100
    config.workers.batch_size = 8  # of each domain and worker
    config.workers.learning_rate = 3e-4
    config.workers.weight_decay = 1e-2
    config.workers.warmup_fraction = 0.1
    # rates of the all-reduce, as multiples: what its larger batches may bear
    config.all_reduce = ConfigDict(dict(factors=(1.0, 2.0)))
    # steps from one average of the weights to the next, for local SGD and for DiLoCo, and the outer Nesterov of that
    config.exchange = ConfigDict(dict(every=(10,)))
    config.outer = ConfigDict(dict(learning_rate=0.7, momentum=0.9))
    config.claims = ConfigDict(dict(margin=0.01))  # what "equal" may lack
    config.evaluate = ConfigDict(dict(batch_size=500))
    return config
