"""Fine-tune a pool on real handwritten digits and cook soups from it.

    python scripts/run.py --config configs/digits.py --workdir runs/digits
    python scripts/run.py --config configs/digits.py --workdir runs/digits --config.seeds=10

A ViT of 310,000 parameters that was trained on the characters of 764 families of fonts (configs/glyphs.py; it comes
with the package) gets a linear probe, and is fine-tuned 16 times on 100 images of MNIST. Every seed draws images,
members and order anew. With --config.random_head.members=16 the same members are made from a random head too.

The 1,000 held-out images choose among members and soups. Who has so many labels would train on most of them: this is a
small setting to see what averaging does, not how to read digits best. The corrupted images are of kinds that no
augmentation makes; "optdigits" are digits of other hands, "printed" of fonts, the kind that the network saw before it
was fine-tuned, so that forgetting shows there.

Ranges that were tried, on other draws of images, with a network of another pre-training of the same kind, and with
rotation, translation and the like among the shifts (gains over the best member in points, test / mean of the shifts):

  these: uniform soup +1.0 / +4.2, greedy soup +0.8 / +3.2 (2 seeds).
  rates 3e-4 to 1e-3, 30 to 50 epochs: uniform +0.7 / +2.2, greedy +0.9 / +2.8 (3 seeds).
  rates 5e-4 to 3e-3, no to two augmentations up to 20, mixup to 0.5, smoothing to 0.2, 40 to 80 epochs: uniform
    +0.1 / +1.2, greedy +0.6 / +3.0 (3 seeds): some members are much worse, and the uniform soup takes them too.
  200 images, rates 5e-4 to 2e-3, augmentations of 5 to 20, 30 to 60 epochs: uniform -0.1 / +1.3, greedy +0.2 / +1.2
    (1 seed).
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config() -> ConfigDict:
    """Return the config of the default experiment."""
    config = ConfigDict()
    config.study = "finetune_and_soup"  # a name, or a function of yours as "module:function"
    config.name = "digits"
    config.seeds = 1  # repetitions of everything but the pre-training
    config.first_seed = 0
    config.about = ConfigDict()
    config.about.minutes = 3
    config.about.shows = (
        "It fine-tunes a ViT that knows printed characters 16 times on 100 images of MNIST, and shows what averages of "
        "the 16 gain over the best of them, on other images of MNIST and on seven other distributions."
    )
    config.about.rows = (
        "start weights",
        "linear probe",
        "best member",
        "mean member",
        "uniform soup",
        "greedy soup",
        "learned soup",
        "WiSE-FT, α = 0.5",
        "ensemble",
        "distilled ensemble",
    )
    config.about.command = "bash scripts/quickstart.sh"
    config.about.next = (
        "docs/your_own.md   # the same for a network and data of yours",
        "soups merge --help   # average checkpoints that you have",
    )
    config.data_dir = placeholder(str)  # of TFDS; default $TFDS_DATA_DIR or ~/tensorflow_datasets

    config.task = ConfigDict()
    config.task.name = "digits"  # a name, or a function of yours; the other fields are what it is called with
    config.task.target = "mnist_5k"
    config.task.image_size = 28
    config.task.num_train = 100
    config.task.num_held_out = 1000
    config.task.num_test = 2500
    config.task.num_shifted = 1000  # of the test images
    config.task.natural_shift_size = 1000
    config.task.printed = True
    config.task.fixed_test = False  # every seed has test images of its own
    families = ("noise", "impulse_noise", "blur", "pixelate", "occlusion")
    config.task.shifts = ConfigDict(dict.fromkeys(families, (3,)))

    config.model = ConfigDict(dict(name="glyph_vit"))

    config.finetune = ConfigDict()
    config.finetune.batch_size = 32
    config.finetune.clip_norm = 1.0
    config.finetune.mode = "auto"
    config.finetune.members_per_program = 4  # of mode "vmap"

    config.probe = ConfigDict(dict(learning_rate=1e-2, weight_decay=0.0, epochs=30))

    config.sweep = ConfigDict()
    config.sweep.members = 16
    config.sweep.learning_rate = (5e-4, 2e-3)
    config.sweep.weight_decay = (1e-4, 1e-1)
    config.sweep.label_smoothing = (0.0, 0.1)
    config.sweep.mixup = (0.0, 0.3)
    config.sweep.augment_operations = (1, 2)
    config.sweep.augment_magnitude = (5.0, 15.0)
    config.sweep.epochs = (40, 60)

    config.random_head = ConfigDict(dict(members=0))  # so many of the members again, without the probe
    config.greedy = ConfigDict(dict(random_orders=1))
    config.learned = ConfigDict(dict(learning_rate=0.05, epochs=5, batch_size=128))
    config.wise_ft = ConfigDict(dict(alphas=(0.0, 0.25, 0.5, 0.75, 1.0)))
    config.evaluate = ConfigDict(dict(batch_size=500))
    config.figures = ConfigDict(dict(counts=(1, 2, 4, 8, 12), plane_points=15, plane_examples=300))
    config.figures.pairs_members = 6
    config.figures.barrier_ts = (0.5,)
    return config
