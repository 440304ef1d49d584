"""Draw the search of fine-tunings, and refuse wrong configs of both ImageNet experiments before any long work."""

import types

import jax
import numpy as np
import pytest
from imagenet_small import (
    ARCH,
    CLASSES,
    ROOT,
    changed,
    default_config,
    finetune_config,
    make_folder,
    soups_config,
)

from soups import Pool, tree
from soups.data.random_transforms import augmentation
from soups.evaluate import Evaluator
from soups.models.architectures import architecture
from soups.studies import imagenet_finetune, imagenet_soups
from soups.studies.given import natural
from soups.studies.imagenet_finetune import draw_members
from soups.studies.streamed import mesh_of
from soups.train import lanes


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with the data, a CLIP, and a pool of three members that nobody has trained."""
    from miniature import tensors

    folder = make_folder(tmp_path_factory.mktemp("imagenet"))
    pool = Pool(folder / "pool")
    for number in range(3):
        weights = tensors.random_weights(architecture(ARCH).abstract(CLASSES), np.random.default_rng(number))
        pool.add(f"member_0{number}", weights)
    return folder


def test_the_search_draws_what_the_published_search_could():
    config = default_config("clip_vit_b32_finetune")["sweep"]
    drawn = draw_members(config | {"members": 300}, 0)
    assert drawn[:71] == draw_members(config, 0)
    rates = np.array([one["learning_rate"] for one in drawn])
    assert 1e-6 <= rates.min() < 2e-6 and 5e-5 < rates.max() <= 1e-4
    for name, largest in (("label_smoothing", 0.25), ("mixup", 0.9)):
        values = np.array([one[name] for one in drawn])
        assert 0.4 < np.mean(values == 0) < 0.6 and largest / 2 < values.max() < largest
    minimal = [one["augmentation"] == "minimal" for one in drawn]
    assert 0.25 < np.mean(minimal) < 0.42
    policies = {one["augmentation"] for one in drawn} - {"minimal"}
    assert {policy.split("-n")[1] for policy in policies} == {"0", "1", "2"}
    assert {int(policy.split("-")[1][1:]) for policy in policies} == set(range(21))
    assert {one["epochs"] for one in drawn} == set(range(4, 17))


def test_minimal_augmentation_keeps_nearly_all_of_the_image(rng):
    image = np.tile(np.arange(100, dtype=np.uint8)[:, None, None], (1, 100, 3))
    crops = [augmentation("minimal", 50)(image, rng)[..., 0] for _ in range(20)]
    assert all(int(crop.max()) - int(crop.min()) >= 85 for crop in crops)
    spans = [
        int(found.max()) - int(found.min()) for found in (augmentation("rand-m0-n0", 50)(image, rng) for _ in range(20))
    ]
    assert min(spans) < 70


def test_members_are_in_their_natural_order():
    assert natural(["model_10", "model_2", "linear", "model_1"]) == ["linear", "model_1", "model_2", "model_10"]
    assert natural(["2b", "10a", "a"]) == ["a", "2b", "10a"]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"sets": ("held_out", "imagenet", "imagenet_v3")}, ValueError, "did you mean 'imagenet_v2'"),
        ({"sets": ("imagenet",)}, ValueError, "sets must have held_out"),
        ({"cook": ("gredy",)}, ValueError, "did you mean 'greedy'"),
        ({"evaluate.precision": "float16"}, ValueError, "unknown precision 'float16'"),
        ({"evaluate.members_dtype": "float16"}, ValueError, "unknown members_dtype 'float16'.*bfloat16"),
        ({"data_dir": None}, ValueError, "data_dir is missing"),
        ({"data_dir": "/nowhere"}, FileNotFoundError, "(?s)missing in /nowhere:.*/val/.*sketch/.*objectnet-1.0"),
        ({"models": "*.pt"}, ValueError, "give either pool.* or models"),
        ({"pool": "/nowhere"}, FileNotFoundError, "no pool at /nowhere"),
        ({"pool": "", "models": "/nowhere/*.pt"}, FileNotFoundError, "matches 0 files"),
        ({"wise_ft.base": "member_0"}, ValueError, "did you mean 'member_0"),
        ({"wise_ft.member": "member_00"}, ValueError, "would go from member_00 to itself"),
        ({"arch": "clip-vit-b32"}, ValueError, "clip-vit-b32 with 20 classes"),
        ({"wise_ft.alphas": ()}, ValueError, "alphas"),
        ({"extra": 1}, ValueError, "extra is unknown"),
    ],
)
def test_wrong_configs_are_refused_before_any_evaluation(folder, tmp_path, changes, error, message, monkeypatch):
    monkeypatch.setattr(Evaluator, "logits", None)
    config = soups_config(folder, folder / "pool") | {"cache_dir": str(folder / "decoded")}
    with pytest.raises(error, match=message):
        imagenet_soups.run(changed(config, changes), tmp_path / "run")


def test_a_pool_with_too_few_finite_members_is_refused(folder, tmp_path):
    pool, good = Pool(tmp_path / "pool"), Pool(folder / "pool")["member_00"]
    pool.add("good", good)
    pool.add("bad", tree.map_with_names(lambda _, leaf: np.full_like(leaf, np.nan), good))
    with pytest.raises(ValueError, match="has 1 finite members, but soups need at least two"):
        imagenet_soups.run(soups_config(folder, pool.path), tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"start": None}, ValueError, "start must be given"),
        ({"data_dir": "/nowhere"}, FileNotFoundError, "/nowhere"),
        ({"start": "/nowhere.pt"}, FileNotFoundError, "nowhere.pt"),
        ({"finetune.dtype": "float16"}, ValueError, "unknown dtype 'float16'"),
        ({"finetune.mesh": (-1, 2)}, ValueError, r'must be three sizes, those of the axes "pool", .* not \(-1, 2\)'),
        ({"finetune.mesh": (1, 2, 2)}, ValueError, "does not take all 8 devices"),
        ({"finetune.mesh": (3, -1, 1)}, ValueError, "does not take all 8 devices"),
        ({"finetune.mesh": (1, -1, 3)}, ValueError, "does not take all 8 devices"),
        ({"finetune.mesh": (-1, 8, 1)}, ValueError, "does not take all 8 devices"),
        ({"finetune.mesh": (1, -1, 0)}, ValueError, "does not take all 8 devices"),
        ({"finetune.batch_size": 62}, ValueError, "batch_size=62 must be a multiple of 4 devices"),
        ({"finetune.accumulate": 3}, ValueError, "must be a multiple of 4 devices and accumulate=3"),
        ({"finetune.accumulate": 0}, ValueError, "accumulate must be at least 1"),
        ({"finetune.sam_radius": -0.1}, ValueError, "sam_radius must be at least 0, not -0.1"),
        (
            {"finetune.ema_decays": (0.9, 1.0)},
            ValueError,
            r"ema_decays must be in \[0, 1\), not 1.0",
        ),
        ({"probe.strengths": ()}, ValueError, "head/kernel"),
        ({"arch": "clip-vit-b16"}, ValueError, "clip-vit-b16"),
    ],
)
def test_wrong_fine_tunings_are_refused(folder, tmp_path, changes, error, message):
    with pytest.raises(error, match=message):
        imagenet_finetune.run(changed(finetune_config(folder), changes), tmp_path / "run")
    assert not (tmp_path / "run" / "stages" / "first_member.json").exists()


class _Device:
    def __init__(self, number, process):
        self.id, self.process_index = number, process


def test_a_place_of_the_pool_lies_within_a_host_where_the_sizes_allow_it(folder, monkeypatch):
    hosts = [_Device(device.id, device.id % 2) for device in jax.devices()]  # their numbers say nothing of their hosts
    monkeypatch.setattr(jax, "devices", lambda: hosts)
    monkeypatch.setattr(lanes, "Mesh", lambda devices, axes, axis_types: types.SimpleNamespace(devices=devices))
    monkeypatch.setattr(lanes, "lane_shares", lambda mesh: None)
    config = finetune_config(folder)["finetune"] | {"mesh": (2, -1, 2)}
    devices = mesh_of(config).devices
    assert devices.shape == (2, 2, 2)
    assert [[device.process_index for device in lane.flat] for lane in devices] == [[0] * 4, [1] * 4]
    assert [device.id for device in devices[1].flat] == [1, 3, 5, 7]


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "imagenet").glob("*.py")), ids=lambda path: path.stem)
def test_every_config_has_the_fields_and_a_known_architecture(path):
    config = default_config(path.stem)
    experiment = {"imagenet_soups": imagenet_soups, "imagenet_finetune": imagenet_finetune}[config["study"]]
    fields = experiment.FIELDS
    assert {name for name in config if not isinstance(config[name], dict)} == set(fields[""].split())
    assert all(set(config[section]) == set(names.split()) for section, names in fields.items() if section)
    assert config["name"] == path.stem
    architecture(config["arch"])
