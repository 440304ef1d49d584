"""Test which trees of checkpoints are taken as the weights, in the shapes that training programs write."""

import numpy as np
import pytest

from soups.formats import CheckpointError
from soups.formats.weights import weights, weights_by_path

W, AVERAGE, T = {"fc.weight": np.ones(2), "fc.bias": np.ones(1)}, {"fc.weight": np.zeros(2)}, np.float32([1.5])
ADAM = {"state": {"0": {"step": T, "exp_avg": T, "exp_avg_sq": T}}, "param_groups": [{"lr": 0.1}]}
P = {"Dense_0": {"kernel": np.ones(2), "bias": np.ones(1)}, "Dense_1": {"kernel": np.ones(3)}}
STATISTICS, OPTAX = {"norm": {"mean": np.ones(1)}}, {"0": {"mu": P, "nu": P, "count": T}, "1": {}}
# what normalisers of inputs keep, which is none of an optimizer
NORMS = {"a": {"mu": T, "sigma": T, "count": T}, "b": {"mu": P, "sigma": P, "count": T}}
NORMS |= {"c": {"mu": T, "count": T}, "d": {"mu": P, "nu": P, "sigma": T, "count": T}}


def decide(tree, **options):
    return weights(tree, "x", is_tensor=lambda item: isinstance(item, np.ndarray), **options)


# program: (what it writes, where the weights are)
TORCH = (
    {
        "a state dict": (W, ""),
        "timm": (
            {"epoch": 1, "arch": "x", "state_dict": W, "optimizer": ADAM, "version": 2, "metric": 0.5},
            "state_dict",
        ),
        "open_clip": ({"epoch": 1, "name": "x", "state_dict": W, "optimizer": ADAM}, "state_dict"),
        "nanoGPT": ({"model": W, "optimizer": ADAM, "iter_num": 7, "best_val_loss": T, "config": {}}, "model"),
        "Lightning": (
            {
                "state_dict": W,
                "callbacks": {"EMA": {"weights": W}},
                "optimizer_states": [ADAM],
                "loops": {"a": {"b": T}},
            },
            "state_dict",
        ),
        "detectron2": ({"model": W, "optimizer": ADAM, "scheduler": {"base_lrs": [1]}, "iteration": 5}, "model"),
        "fairseq": (
            {"args": None, "model": W, "criterion": {"w": T}, "last_optimizer_state": ADAM, "extra_state": {"t": T}},
            "model",
        ),
        "MAE": ({"model": W, "optimizer": ADAM, "epoch": 1, "scaler": {"scale": T}, "args": 0}, "model"),
        "mmcv": ({"meta": {"epoch": 1}, "state_dict": W, "optimizer": ADAM}, "state_dict"),
        "Megatron": ({"checkpoint_version": 3.0, "model": {"language_model": W, "word": {"weight": T}}}, "model"),
        "SWA alone": ({"swa_state_dict": W, "epoch": 1}, "swa_state_dict"),
        "Real-ESRGAN, its average": ({"params_ema": W}, "params_ema"),
        "BasicSR": ({"params": W}, "params"),
        "a wrapper in a wrapper": ({"model": {"state_dict": W, "step": T}, "optimizer": ADAM}, "model/state_dict"),
        "all in one": ({"checkpoint": {"module": W, "optimizer": ADAM}}, "checkpoint/module"),
    }
    | {
        name: ({name: W, "anything": {"a": T}, "b": T}, name)
        for name in ("state_dict", "model_state_dict", "model", "params")
    }
    | {
        name: ({name: W, "optimizer": ADAM, "scaler": {"a": T}, "b": T}, name)
        for name in ("net", "network", "module", "weights")
    }
)
TORCH_SEVERAL = {
    "timm with an average": ({"state_dict": W, "state_dict_ema": AVERAGE, "optimizer": ADAM}, "state_dict_ema"),
    "DeiT": ({"model": W, "model_ema": AVERAGE, "optimizer": ADAM, "scaler": {"scale": T}}, "model_ema"),
    "lucidrains": ({"step": 1, "model": W, "opt": ADAM, "ema": AVERAGE, "scaler": None}, "ema"),
    "DINO": ({"student": W, "teacher": AVERAGE, "optimizer": ADAM, "dino_loss": {"center": T}}, "teacher"),
    "StyleGAN": ({"g": W, "d": W, "g_ema": AVERAGE, "g_optim": ADAM}, "g_ema"),
    "Real-ESRGAN": ({"params": W, "params_ema": AVERAGE}, "params_ema"),
    "shadow weights": ({"net": W, "shadow": AVERAGE}, "shadow"),
    "the best and the last": ({"best_model": W, "model": AVERAGE}, "best_model"),
    "two names for weights": ({"model": W, "network": W}, "network"),
    "parts": ({"net": W, "head": W, "epoch": 1}, "head"),
    "an average within": ({"model": {"state_dict": W, "ema": AVERAGE}, "epoch": 3}, "model/ema"),
}
JAX = {
    "params": (P, ""),
    "Linen": ({"params": P, "batch_stats": STATISTICS}, ""),
    "Linen without statistics": ({"params": P}, ""),
    "TrainState": ({"params": P, "opt_state": OPTAX, "step": T}, "params"),
    "TrainState that holds variables": ({"params": {"params": P}, "opt_state": OPTAX, "step": T}, "params"),
    "Orbax item of a TrainState": ({"state": {"params": P, "opt_state": OPTAX, "step": T}}, "state/params"),
    "big_vision": ({"params": P, "opt": OPTAX, "chrono": {"accum_train_time": T}}, "params"),
    "T5X": ({"target": P, "state": {"step": T, "param_states": P}}, "target"),
    "T5X of old": ({"version": T, "optimizer": {"target": P, "state": {"param_states": P}}}, "optimizer/target"),
    "Haiku": ({"params": P, "opt_state": OPTAX, "state": STATISTICS}, "params"),
    "NNX": ({"model": P, "optimizer": {"opt_state": OPTAX, "step": T}}, "model"),
    "Hugging Face, BART": ({"model": {"encoder": P, "shared": P}, "final_logits_bias": T}, ""),
    "Hugging Face, Llama": ({"model": {"layers": P}, "lm_head": {"kernel": T}}, ""),
    "parts named like wrappers": ({"net": P, "head": P}, ""),
    "a state beside its config": ({"state": {"params": P, "opt_state": OPTAX}, "config": {"lr": T}}, "state/params"),
    "Lion": ({"net": P, "lion_state": {"0": {"mu": P, "count": T}}}, "net"),
    "AMSGrad": ({"net": P, "amsgrad": {"0": {"mu": P, "nu": P, "nu_max": P, "count": T}}}, "net"),
    "Muon": ({"net": P, "muon": {"0": {"mu": P, "ns_coeffs": T, "count": T}}}, "net"),
    "a normaliser beside weights": ({"actor": P, "obs": NORMS}, ""),
    "a normaliser among weights": ({"actor": {**P, "obs": NORMS}, "critic": P}, ""),
    "a normaliser among statistics": ({"params": P, "batch_stats": {"obs": NORMS}}, ""),
    "a normaliser in params": ({"params": {**P, "obs": NORMS}, "opt_state": OPTAX, "step": T}, "params"),
    "only an average": ({"ema_params": P, "opt_state": OPTAX, "step": T}, "ema_params"),
}
JAX_SEVERAL = {
    "params and their average": ({"params": P, "ema_params": P, "opt_state": OPTAX, "step": T}, "ema_params"),
    "params and ema": ({"params": P, "ema": P}, "ema"),
    "reinforcement learning": ({"params": P, "target_params": P, "opt_state": OPTAX}, "target_params"),
    "model and ema": ({"model": P, "ema_model": P, "step": T}, "ema_model"),
    "an average within": ({"state": {"params": P, "ema_params": P}, "step": T}, "state/ema_params"),
}


def at(tree, path):
    for key in path.split("/") if path else ():
        tree = tree[key]
    return tree


CASES = [(*case, wrapped) for table, wrapped in ((TORCH, True), (JAX, False)) for case in table.values()]
SEVERAL = [
    (*case, wrapped) for table, wrapped in ((TORCH_SEVERAL, True), (JAX_SEVERAL, False)) for case in table.values()
]


@pytest.mark.parametrize(("tree", "path", "wrapped"), CASES, ids=[*TORCH, *JAX])
def test_known_weights_are_taken_and_the_rest_is_named(tree, path, wrapped):
    taken, left = decide(tree, wrapped=wrapped)
    assert taken is at(tree, path)
    top = path.partition("/")[0]
    assert [name for name in left if "/" not in name] == [key for key in tree if path and key != top]


@pytest.mark.parametrize(("tree", "choice", "wrapped"), SEVERAL, ids=[*TORCH_SEVERAL, *JAX_SEVERAL])
def test_several_trees_are_refused_and_one_is_chosen(tree, choice, wrapped):
    with pytest.raises(CheckpointError, match=r"^x holds several trees that could be the weights") as error:
        decide(tree, wrapped=wrapped)
    assert f"'{choice}'" in str(error.value)
    assert "choose one with PATH@NAME, or the whole checkpoint with PATH@." in str(error.value)
    taken, left = decide(tree, wrapped=wrapped, choice=choice)
    assert taken is at(tree, choice) and set(left) >= set(tree) - {choice.partition("/")[0]}
    assert decide(tree, wrapped=wrapped, choice=".") == (tree, [])


def test_what_is_chosen_is_taken_without_its_optimizer():
    tree = {name: {"params": P, "opt_state": OPTAX} for name in ("gen", "disc")}
    with pytest.raises(CheckpointError, match="the state of an optimizer among its trees: 'gen', 'disc'"):
        decide(tree)
    assert decide(tree, choice="gen") == (P, ["disc", "gen/opt_state"])
    assert decide({"state": tree}, choice="state/disc") == (P, ["state/gen", "state/disc/opt_state"])
    with pytest.raises(CheckpointError, match="the state of an optimizer and no weights: 'gen/opt_state/0'"):
        decide(tree, choice="gen/opt_state")


def test_the_trees_below_a_choice_have_the_names_that_choose_them():
    state = {"params": P, "ema_params": P, "opt_state": OPTAX}
    with pytest.raises(CheckpointError, match="could be the weights: 'state/params', 'state/ema_params'; choose"):
        decide({"state": state, "x": P}, choice="state")
    with pytest.raises(CheckpointError, match="optimizer among its trees: 'all/gen', 'all/disc'; choose"):
        decide({"all": {"gen": state, "disc": state}}, choice="all")


def test_what_is_known_as_weights_is_not_left_out():
    with pytest.raises(CheckpointError, match="optimizer among its trees: 'params', 'batch_stats'; choose"):
        decide({"params": P, "batch_stats": {"obs": {"mu": P, "count": T}}})


def test_statistics_belong_to_the_weights():
    tree = {"params": P, "batch_stats": STATISTICS, "opt_state": OPTAX, "step": T}
    assert decide(tree) == ({"params": P, "batch_stats": STATISTICS}, ["opt_state", "step"])


def test_an_optimizer_beside_unknown_trees_is_left_out():
    tree = {"encoder": P, "decoder": P, "adam": OPTAX, "g_optimizer": P, "step": T}
    assert decide(tree) == ({"encoder": P, "decoder": P}, ["adam", "g_optimizer", "step"])


def test_the_state_of_adam_beside_its_weights_is_left_out():
    tree = {"net": P, "mu": P, "nu": P, "count": T}
    assert decide(tree) == ({"net": P, "count": T}, ["mu", "nu"])
    for other in (tree | {"net": {"a": P}}, {"net": P, "mu": P, "nu": P}, {"mu": P, "sigma": P, "count": T}):
        assert decide(other) == (other, [])


@pytest.mark.parametrize("tree", [{"opt_state": OPTAX, "step": T}, ADAM, OPTAX, {"x": OPTAX}])
def test_the_state_of_an_optimizer_is_no_weights(tree):
    with pytest.raises(CheckpointError, match=r"^x holds .*the state of an optimizer"):
        decide(tree)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("parms", "x has no tree 'parms'; there are: 'params', 'a/b', 'params/Dense_0', 'params/Dense_1'"),
        ("params/Dense_2", "x has no tree 'params/Dense_2'; there are"),
        ("step", "x has no tree 'step'; there are"),
        ("params/Dense_0/kernel/a", "x has no tree"),
        ("", "x has no tree ''; there are"),
    ],
)
def test_a_tree_that_is_not_there(choice, message):
    with pytest.raises(CheckpointError, match=f"^{message}"):
        decide({"params": P, "a/b": {"c": T}, "step": T}, choice=choice)


def test_keys_with_slashes_are_chosen():
    assert decide({"a/b": {"c": P}, "a": P}, choice="a/b/c") == (P, ["a"])


def test_mappings_that_hold_themselves_end():
    tree = {"model": {"w": T}}
    tree["model"]["model"] = tree
    decide(tree, wrapped=True)
    tree = {"state": {}, "x": T}
    tree["state"]["state"] = tree
    decide(tree)


def test_names_by_path():
    leaves = [("step",), ("params", "b", "w"), ("params", "a"), ("opt", "mu")]
    assert weights_by_path(leaves, "x") == (
        {("b", "w"): ("params", "b", "w"), ("a",): ("params", "a")},
        ["step", "opt"],
    )
    both = [("a", "b"), ("a",), ("a", "b", "c")]  # tensors and folders of one name
    assert list(weights_by_path(both, "x")[0].items()) == [(path, path) for path in both]
    below = [("params", *path) for path in both]
    assert weights_by_path([("opt", "mu"), *below], "x")[0] == dict(zip(both, below, strict=True))
    assert weights_by_path([("a", "x"), ("b", "y")], "x", "b") == ({("y",): ("b", "y")}, ["a"])
