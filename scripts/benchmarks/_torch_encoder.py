"""Train and run MiniLM in PyTorch, on command: run by encoder_torch.py with an interpreter that has transformers.

Reads weights and a batch (argv[1]), says the losses of the first steps and the logits of each variant as one line of
JSON, then obeys lines "task, variant steps" from stdin and answers each with "done".
"""

import json
import os
import sys

import numpy as np
import torch
import torch.nn.functional as F
import transformers

CHECKED_STEPS = 2  # Adam makes much of rounding: its first steps are signs of gradients
VARIANTS = {"eager": ("eager", False), "sdpa": ("sdpa", False), "compiled": ("sdpa", True)}


class Classifier(torch.nn.Module):
    """A BERT whose tokens are averaged, and a head."""

    def __init__(self, settings, attention, file):
        super().__init__()
        self.bert = transformers.BertModel.from_pretrained(
            settings["folder"], add_pooling_layer=False, attn_implementation=attention
        )
        self.head = torch.nn.Linear(*file["head/kernel"].shape)
        with torch.no_grad():
            self.head.weight.copy_(torch.tensor(file["head/kernel"]).T)
            self.head.bias.copy_(torch.tensor(file["head/bias"]))

    def forward(self, tokens, mask):
        """Map tokens and mask [B, T] to logits [B, classes]."""
        hidden = self.bert(input_ids=tokens, attention_mask=mask).last_hidden_state
        shares = mask[..., None].to(hidden.dtype)
        return self.head((hidden * shares).sum(1) / shares.sum(1))


def variant(file, settings, attention, compiled):
    """Return a function that takes some steps and gives their losses, and one that gives the logits of the start."""
    tokens, mask = torch.tensor(file["images"]).long().unbind()
    labels = torch.tensor(file["labels"]).long()
    trained, still = (Classifier(settings, attention, file).eval() for _ in range(2))  # eval: there is no dropout
    trained.bert.embeddings.requires_grad_(False)
    weights = [weight for weight in trained.parameters() if weight.requires_grad]
    optimizer = torch.optim.Adam(weights, lr=settings["learning_rate"], fused=True)
    forward, measured = (torch.compile(one) if compiled else one for one in (trained, still))

    def train(steps):
        losses = []
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=True)
            loss = F.cross_entropy(forward(tokens, mask), labels)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        return torch.stack(losses).tolist()

    def run(steps):
        with torch.inference_mode():
            for _ in range(steps):
                logits = measured(tokens, mask)
        return logits.tolist()

    return train, run


def main():
    """Serve the benchmark."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    file = dict(np.load(sys.argv[1]))
    settings = json.loads(str(file.pop("settings")))
    runs, losses, logits, failed = {}, {}, {}, {}
    for name in settings["variants"]:
        try:
            train, run = variant(file, settings, *VARIANTS[name])
            losses[name], logits[name] = train(CHECKED_STEPS), run(1)
            runs |= {f"train, {name}": train, f"forward, {name}": run}
        except Exception as error:  # torch.compile needs a C++ compiler, which not every machine has
            failed[name] = f"{type(error).__name__}: {error}".splitlines()[0]
    said = {"losses": losses, "logits": logits, "failed": failed, "version": torch.__version__}
    print(json.dumps(said | {"transformers": transformers.__version__}), flush=True)
    for line in sys.stdin:
        name, steps = line.rsplit(maxsplit=1)
        runs[name](int(steps))
        print("done", flush=True)


if __name__ == "__main__":
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    main()
