"""Train and run MiniLM in PyTorch, on command: run by encoder_torch.py with an interpreter that has transformers.

`_torch_serve.serve` says what it reads, says and obeys.
"""

import torch
import torch.nn.functional as F
import transformers
from _torch_serve import serve, stepper

CHECKED_STEPS = 2  # Adam makes much of rounding: its first steps are signs of gradients
VARIANTS = {
    "eager": {"attention": "eager", "compiled": False},
    "sdpa": {"attention": "sdpa", "compiled": False},
    "compiled": {"attention": "sdpa", "compiled": True},
}


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


def tasks(file, settings, *, attention, compiled):
    """Return the tasks of a variant; what is trained is not what gives logits."""
    tokens, mask = torch.tensor(file["images"]).long().unbind()
    labels = torch.tensor(file["labels"]).long()
    trained, still = (Classifier(settings, attention, file).eval() for _ in range(2))  # eval: there is no dropout
    trained.bert.embeddings.requires_grad_(False)
    weights = [weight for weight in trained.parameters() if weight.requires_grad]
    optimizer = torch.optim.Adam(weights, lr=settings["learning_rate"], fused=True)
    forward, measured = (torch.compile(one) if compiled else one for one in (trained, still))

    def logits(steps):
        with torch.inference_mode():
            for _ in range(steps):
                found = measured(tokens, mask)
        return found.tolist()

    train = stepper(lambda: F.cross_entropy(forward(tokens, mask), labels), optimizer)
    return {"train": train, "forward": logits}


if __name__ == "__main__":
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    serve(tasks, VARIANTS, CHECKED_STEPS, transformers=transformers.__version__)
