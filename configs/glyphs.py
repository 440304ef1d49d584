"""Pre-train a small ViT on the characters of openly licensed fonts: the network "glyph_vit" that the package ships.

    python scripts/fetch_fonts.py fonts
    python scripts/run.py --config configs/glyphs.py --config.task.fonts=fonts

Then the tensors of runs/glyphs/weights.safetensors are made as those of soups/models/weights/glyph_vit.safetensors
were: see docs/glyphs.md.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config() -> ConfigDict:
    """Return the config of the pre-training."""
    config = ConfigDict()
    config.study = "pretrain"
    config.name = "glyphs"
    config.seed = 0

    config.task = ConfigDict(dict(name="glyphs", fonts=placeholder(str), image_size=28))
    config.model = ConfigDict(dict(name="vit", patch_size=7, width=96, depth=4, mlp_dim=192, num_heads=4))
    config.model.pool_type = "gap"

    config.pretrain = ConfigDict(dict(batch_size=256, clip_norm=1.0, learning_rate=2e-3, weight_decay=5e-2, epochs=12))
    config.pretrain.update(label_smoothing=0.1, augment_operations=2, augment_magnitude=15.0)

    config.export = ConfigDict(dict(dtype="float16"))
    config.export.about = "ViT trained on the characters of openly licensed fonts, in the classes of EMNIST balanced"
    config.evaluate = ConfigDict(dict(batch_size=500))
    return config
