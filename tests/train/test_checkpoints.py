"""Test that the state of a run is found again whole, or a damaged one passed over."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from soups.train.checkpoints import restore_state, save_state


def make_state(seed=0):
    """Return a training state with what optimizers have: named tuples, empty ones and None."""
    rng = np.random.default_rng(seed)
    params = {"head": {"kernel": jnp.asarray(rng.normal(size=(8, 4)), jnp.float32)}, "frozen": None}
    optimizer = optax.chain(optax.adamw(1e-3), optax.identity()).init(params)
    return {
        "params": params,
        "optimizer": optimizer,
        "step": jnp.int32(seed),
        "averages": {},
        "moved": (params, params),
    }


def abstract(state, sharding=None):
    sharding = sharding or SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), state)


def assert_same(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def test_a_state_comes_back_to_the_bit(tmp_path):
    state = make_state(3)
    assert restore_state(tmp_path, abstract(state)) is None
    save_state(tmp_path / "new" / "folder", 3, state, {"next_index": 7})
    step, restored, position = restore_state(tmp_path / "new" / "folder", abstract(state))
    assert (step, position) == (3, [{"next_index": 7}])
    assert_same(restored, state)


def test_a_state_comes_back_in_its_shards(tmp_path, mesh):
    kernel = jax.device_put(np.arange(32, dtype=np.float32).reshape(8, 4), NamedSharding(mesh, P("pool", "data")))
    save_state(tmp_path, 1, {"kernel": kernel}, None)
    turned = NamedSharding(mesh, P("data", "pool"))
    _, restored, _ = restore_state(tmp_path, abstract({"kernel": kernel}, turned))
    assert restored["kernel"].sharding == turned
    np.testing.assert_array_equal(restored["kernel"], kernel)


@pytest.fixture
def three(tmp_path):
    """Return a directory where the states after 5, 10 and 15 steps were kept."""
    for step in (5, 10, 15):
        save_state(tmp_path, step, make_state(step), {"next_index": step})
    return tmp_path


def test_the_last_two_are_kept(three):
    assert sorted(path.name for path in three.iterdir()) == ["step_00000010", "step_00000015"]
    assert restore_state(three, abstract(make_state()))[0] == 15


def test_what_a_killed_process_left_is_no_checkpoint(three):
    (three / "step_00000020.unfinished" / "state").mkdir(parents=True)
    assert restore_state(three, abstract(make_state()))[0] == 15
    save_state(three, 20, make_state(20), None)
    assert sorted(path.name for path in three.iterdir()) == ["step_00000015", "step_00000020"]


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def a_chunk(checkpoint):
    return max(checkpoint.glob("state/**/*"), key=lambda file: file.stat().st_size if file.is_file() else -1)


@pytest.mark.parametrize("damage", ["flipped", "missing", "no digests", "positions"])
def test_a_damaged_checkpoint_is_passed_over(three, caplog, damage):
    newest = three / "step_00000015"
    match damage:
        case "flipped":
            flip(a_chunk(newest))
        case "missing":
            a_chunk(newest).unlink()
        case "no digests":
            (newest / "digests.json").unlink()
        case "positions":
            (newest / "positions.json").write_text("[{]")
    with caplog.at_level(logging.ERROR):
        step, state, _ = restore_state(three, abstract(make_state()))
    assert step == 10
    assert_same(state, make_state(10))
    assert "step_00000015 is damaged and passed over" in caplog.text
    save_state(three, 15, make_state(15), None)  # the run goes on and takes the place of the damaged one
    assert restore_state(three, abstract(make_state()))[0] == 15


def test_only_damaged_checkpoints_are_an_error(three):
    for path in list(three.iterdir()):
        flip(a_chunk(path))
    with pytest.raises(ValueError, match=r"every checkpoint in .* is damaged: step_00000015, step_00000010; remove"):
        restore_state(three, abstract(make_state()))


def test_another_state_is_an_error(three):
    with pytest.raises(ValueError, match="other_kernel"):
        restore_state(three, abstract(make_state() | {"other_kernel": np.float32(0)}))
