"""Name the published recipes of fine-tuning, as hyper-parameters.

Both: AdamW with β = (0.9, 0.999), ε = 1e-8 and decay of every weight, biases too (`DECAY_ALL`); linear warm-up of 500
steps and a half cosine to zero; gradients clipped to a global norm of 1; the head starts from the zero-shot or the
linear-probe head, and the features are normalised.
"""

DECAY_ALL = ((".*", True),)

# Wortsman et al., "Robust fine-tuning of zero-shot models", 2021, arXiv 2109.01903, appendix D.2: CLIP on ImageNet.
# Images: random_resized_crop(size, scale=(0.9, 1.0)) alone. Then soups.wise_ft(member, base=zero_shot, alpha=0.5).
WISE_FT = {"learning_rate": 3e-5, "weight_decay": 0.1, "epochs": 10, "warmup_steps": 500}
WISE_FT_BATCH = 512

# Wortsman et al., "Model soups", 2022, arXiv 2203.05482, as their finetune.py: CLIP on ImageNet.
MODEL_SOUPS = {"learning_rate": 2e-5, "weight_decay": 0.1, "epochs": 8, "warmup_steps": 500}
MODEL_SOUPS_BATCH = 256
