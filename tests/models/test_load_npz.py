"""Load checkpoints in the layouts in which big_vision and AugReg were released."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from soups import models, tree

FIELDS = {"patch_size": 4, "width": 8, "depth": 2, "mlp_dim": 12, "num_heads": 2, "num_classes": 3}


def start(**fields):
    model = models.ViT(**{**FIELDS, **fields})
    shapes = jax.eval_shape(lambda: models.init(model, jax.random.key(0), (8, 8, 1)))
    return jax.tree.map(lambda leaf: np.full(leaf.shape, 7, leaf.dtype), shapes)


@pytest.fixture
def released(rng):
    """Return released weights by name, and the network's start weights with a class token."""
    like = start(pool_type="tok")
    return {name: rng.normal(size=x.shape).astype(np.float32) for name, x in tree.flatten(like).items()}, like


def save(path, leaves, prefix=""):
    np.savez(path, **{prefix + name: leaf for name, leaf in leaves.items()})
    return path


@pytest.mark.parametrize("prefix", ["params/", "", "opt/target/"])
def test_every_leaf_arrives_by_name(tmp_path, released, prefix):
    leaves, like = released
    loaded = models.load_big_vision(save(tmp_path / "vit.npz", leaves, prefix), like)
    tree.check_same_structure([like, loaded])
    for name, leaf in tree.flatten(loaded).items():
        np.testing.assert_array_equal(leaf, leaves[name])


def test_optimizer_state_beside_the_params_is_ignored(tmp_path, released):
    leaves, like = released
    both = {f"params/{n}": x for n, x in leaves.items()} | {f"opt/mu/{n}": 0 * x for n, x in leaves.items()}
    loaded = models.load_big_vision(save(tmp_path / "vit.npz", both), like)
    np.testing.assert_array_equal(loaded["head"]["kernel"], leaves["head/kernel"])


def test_bfloat16_saved_as_raw_bytes_is_recovered(tmp_path, released):
    leaves, like = released
    narrow = {name: leaf.astype(ml_dtypes.bfloat16) for name, leaf in leaves.items()}
    raw = {name: leaf.view("V2") for name, leaf in narrow.items()}
    loaded = tree.flatten(models.load_big_vision(save(tmp_path / "vit.npz", raw), like))
    for name, leaf in loaded.items():
        assert leaf.dtype == np.float32
        np.testing.assert_array_equal(leaf, narrow[name].astype(np.float32))


@pytest.mark.parametrize("position_name", ["Transformer/posembed_input/pos_embedding", "Transformer/pos_embedding"])
def test_names_of_the_first_augreg_releases_are_translated(tmp_path, released, rng, position_name):
    leaves, like = released
    to_old = {
        "LayerNorm_1": "LayerNorm_2",
        "MultiHeadDotProductAttention_0": "MultiHeadDotProductAttention_1",
        "MlpBlock_0": "MlpBlock_3",
    }
    old = {"/".join(to_old.get(part, part) for part in name.split("/")): leaf for name, leaf in leaves.items()}
    token_position = rng.normal(size=(1, 1, 8)).astype(np.float32)
    old[position_name] = np.concatenate([token_position, old.pop("pos_embedding")], axis=1)
    loaded = tree.flatten(models.load_big_vision(save(tmp_path / "old.npz", old), like))
    expected = {**leaves, "cls": leaves["cls"] + token_position}
    for name, leaf in loaded.items():
        np.testing.assert_array_equal(leaf, expected[name], err_msg=name)


def test_one_tower_of_several_is_taken_by_part(tmp_path, released):
    leaves, like = released
    towers = {f"params/img/{n}": x for n, x in leaves.items()} | {"params/txt/head/kernel": np.ones(3), "params/t": 1.0}
    path = save(tmp_path / "two.npz", towers)
    loaded = models.load_big_vision(path, like, part="img")
    np.testing.assert_array_equal(loaded["cls"], leaves["cls"])
    with pytest.raises(ValueError, match="no part 'image', only 'img', 't', 'txt'"):
        models.load_big_vision(path, like, part="image")


@pytest.mark.parametrize("headless", [True, False])
def test_kept_leaves_come_from_like(tmp_path, released, headless):
    leaves, _ = released
    like = start(pool_type="tok", num_classes=7)
    present = {name: leaf for name, leaf in leaves.items() if not (headless and name.startswith("head/"))}
    loaded = models.load_big_vision(save(tmp_path / "vit.npz", present), like, keep="head/.*")
    assert loaded["head"]["kernel"].shape == (8, 7)
    np.testing.assert_array_equal(loaded["cls"], leaves["cls"])


def test_keep_that_matches_nothing_is_an_error(tmp_path, released):
    leaves, like = released
    with pytest.raises(ValueError, match=r"'haed/\.\*' matches no leaf"):
        models.load_big_vision(save(tmp_path / "vit.npz", leaves), like, keep="haed/.*")


def test_every_mismatch_is_listed_in_one_error(tmp_path, released):
    leaves, like = released
    del leaves["cls"]
    leaves["head/kernel"] = np.zeros((8, 1000), np.float32)
    leaves["pre_logits/bias"] = np.zeros(8, np.float32)
    with pytest.raises(ValueError) as error:
        models.load_big_vision(save(tmp_path / "vit.npz", leaves), like)
    message = str(error.value)
    assert "- vit.npz: cls is missing" in message
    assert "+ vit.npz: pre_logits/bias is extra" in message
    assert "~ vit.npz: head/kernel has shape (8, 1000) instead of (8, 3)" in message


def test_files_that_are_no_checkpoints_are_errors(tmp_path, released):
    _, like = released
    with pytest.raises(FileNotFoundError):
        models.load_big_vision(tmp_path / "absent.npz", like)
    np.save(tmp_path / "one.npy", np.zeros(3))
    (tmp_path / "text.npz").write_text("hello")
    save(tmp_path / "whole.npz", {"a": np.zeros(300)})
    (tmp_path / "cut.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:200])
    for name in ("one.npy", "text.npz", "cut.npz"):
        with pytest.raises(ValueError, match=rf"{name} is not an .npz file"):
            models.load_big_vision(tmp_path / name, like)


@pytest.mark.parametrize("names", [["a", "a/b"], ["a/b", "a"], ["a/b/c", "a/b"]])
def test_a_leaf_with_the_name_of_a_folder(names, tmp_path, released):
    path = save(tmp_path / "x.npz", {name: np.zeros(1) for name in names})
    with pytest.raises(
        ValueError, match=r"'a/b' (lies inside another leaf|is a leaf)|'a' is a leaf, but other leaves lie inside it"
    ):
        models.load_big_vision(path, released[1])


def test_a_position_embedding_of_another_rank(tmp_path, released):
    leaves, like = released
    path = save(tmp_path / "x.npz", {**leaves, "pos_embedding": np.zeros(3)})
    with pytest.raises(ValueError, match=r"pos_embedding has shape \(3,\)"):
        models.load_big_vision(path, like)


def test_loaded_weights_run(tmp_path, released):
    leaves, like = released
    loaded = models.load_big_vision(save(tmp_path / "vit.npz", leaves), like)
    logits = models.apply_fn(models.ViT(**FIELDS, pool_type="tok"))(loaded, jnp.ones((1, 8, 8, 1)))
    assert logits.shape == (1, 3) and np.all(np.isfinite(logits))
