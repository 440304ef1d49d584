"""Run fusion-bench on the models of the command line; for the interpreter that it is installed in."""

import itertools
import types

import exchange
import lightning
import numpy as np
import torch
from fusion_bench.method.adamerging.layer_wise_adamerging import LayerWiseAdaMergingAlgorithm
from fusion_bench.method.adamerging.task_wise_adamerging import TaskWiseAdaMergingAlgorithm
from fusion_bench.method.dare import DareTaskArithmetic, DareTiesMerging
from fusion_bench.method.emr_merging.utils import emr_merge
from fusion_bench.method.fisher_merging.fisher_merging import fisher_merging, merging_with_fisher_weights
from fusion_bench.method.isotropic_merging.iso_utils import iso_c
from fusion_bench.method.linear.expo import ExPOAlgorithm
from fusion_bench.method.linear.linear_interpolation import LinearInterpolationAlgorithm
from fusion_bench.method.magmax.magmax import MagMaxAlgorithm
from fusion_bench.method.model_stock.model_stock import ModelStock
from fusion_bench.method.regmean.regmean import merging_with_regmean_weights, regmean_merging
from fusion_bench.method.regmean_plusplus.regmean_plusplus import RegMeanAlgorithmPlusPlus
from fusion_bench.method.simple_average import SimpleAverageAlgorithm
from fusion_bench.method.slerp import SlerpMergeAlgorithm
from fusion_bench.method.tall_mask import task_arithmetic as tall_mask_class
from fusion_bench.method.tall_mask import utils as tall_mask
from fusion_bench.method.task_arithmetic.task_arithmetic import TaskArithmeticAlgorithm
from fusion_bench.method.task_singular_vector.utils import TSVM_utils
from fusion_bench.method.ties_merging.ties_merging import TiesMergingAlgorithm
from fusion_bench.method.weighted_average.weighted_average import WeightedAverageAlgorithm
from fusion_bench.method.wudi import wudi_merging
from fusion_bench.modelpool import BaseModelPool
from fusion_bench.utils.state_dict_arithmetic import state_dict_interpolation
from omegaconf import DictConfig
from torch import nn

MEMBERS = ("a", "b", "c")
BATCH = 16


# --- Bare tensors ---


class Leaves(nn.Module):
    """Hold tensors by name."""

    def __init__(self, tree):
        super().__init__()
        for name, array in tree.items():
            self.register_parameter(name, nn.Parameter(torch.from_numpy(array.copy())))


def arrays(tensors):
    return {name: tensor.detach().numpy() for name, tensor in tensors.items()}


def tensors(tree):
    return {name: torch.from_numpy(array.copy()) for name, array in tree.items()}


def pool(family, members=MEMBERS, base=True):
    models = {"_pretrained_": Leaves(family["base"])} if base else {}
    return BaseModelPool(models | {name: Leaves(family[name]) for name in members})


def run(algorithm, family, members=MEMBERS, base=True):
    return arrays(algorithm.run(pool(family, members, base)).state_dict())


def task_vectors(family, leaves=None):
    chosen = leaves or list(family["base"])
    return [tensors({leaf: family[name][leaf] - family["base"][leaf] for leaf in chosen}) for name in MEMBERS]


def added(family, vectors, scale=1.0):
    return {name: family["base"][name] + scale * vector.detach().numpy() for name, vector in vectors.items()}


def emr(family, leaves):
    unified, masks, rescalers = emr_merge(task_vectors(family, leaves))
    return {
        name: {leaf: family["base"][leaf] + (unified[leaf] * masks[leaf][i] * rescalers[i]).numpy() for leaf in leaves}
        for i, name in enumerate(MEMBERS)
    }


def flat_tall_masks(family):
    base, *members = (
        torch.cat([torch.from_numpy(family[name][leaf]).reshape(-1) for leaf in family["base"]])
        for name in ("base", *MEMBERS)
    )
    members = torch.stack(members)
    masks = tall_mask.generate_task_masks(members - base, members, base, tall_mask_lambda=0.4)
    return {name: {"mask": mask.numpy().astype(np.int8)} for name, mask in zip(MEMBERS, masks, strict=True)}


def tall_masks_by_their_class(family):
    models = tall_mask_class.TallMaskTaskArithmeticAlgorithm(0.4).run(pool(family))["models"]
    return {name: arrays(model.state_dict()) for name, model in models.items()}


def tall_masks_of_their_class(family):
    vectors, base = task_vectors(family), tensors(family["base"])
    total, found = {name: sum(vector[name] for vector in vectors) for name in base}, {}
    for member, vector in zip(MEMBERS, vectors, strict=True):
        masks = tall_mask_class.generate_task_masks(total, vector, base, tall_mask_lambda=0.4)
        found[member] = {name: (base[name] + masks[name] * total[name]).numpy() for name in base}
    return found


def fisher(models, normalize):
    values = {leaf: [torch.from_numpy(models["plain"][m][leaf]) for m in MEMBERS] for leaf in models["plain"]["base"]}
    fishers = [tensors(models["fishers"][m]) for m in MEMBERS]
    shares = torch.ones(len(MEMBERS), dtype=fishers[0]["dense"].dtype) / len(MEMBERS)
    return arrays(merging_with_fisher_weights(values, fishers, shares, normalize_fisher_weight=normalize))


def regmean(models, alpha):
    values = {
        f"{leaf}.weight": [torch.from_numpy(models["plain"][m][leaf].T.copy()) for m in MEMBERS]
        for leaf in ("dense", "wide")
    }
    grams = [tensors(models["grams"][m]) for m in MEMBERS]
    merged = merging_with_regmean_weights(values, grams, reduce_non_diagonal_ratio=alpha)
    return {name.removesuffix(".weight"): tensor.numpy().T for name, tensor in merged.items()}


def kept_share(models):
    merged = run(DareTaskArithmetic(1.0, 0.7, False), models["large"], ["a"])
    return {"value": np.mean(merged["x"] != 0)}


def mean_factor(models):
    merged = run(DareTaskArithmetic(1.0, 0.7, False), models["large"], ["a"])
    return {"value": np.mean(merged["x"] / models["large"]["a"]["x"])}


# --- A network ---


class Block(nn.Module):
    """Apply a linear layer and, but for the head, ReLU."""

    def __init__(self, layer, last):
        super().__init__()
        kernel, bias = torch.from_numpy(layer["kernel"].T.copy()), torch.from_numpy(layer["bias"].copy())
        self.linear = nn.Linear(kernel.shape[1], kernel.shape[0], dtype=kernel.dtype)
        self.linear.weight.data, self.linear.bias.data = kernel, bias
        self.last = last

    def forward(self, inputs):
        outputs = self.linear(inputs)
        return outputs if self.last else torch.relu(outputs)


class Net(nn.Module):
    """Classify by an MLP."""

    def __init__(self, tree):
        super().__init__()
        self.names = [*sorted(name for name in tree if name != "head"), "head"]
        self.blocks = nn.ModuleList([Block(tree[name], name == "head") for name in self.names])

    def forward(self, inputs):
        for block in self.blocks:
            inputs = block(inputs)
        return types.SimpleNamespace(logits=inputs)


def tree_of(state, names):
    return {
        name: {
            "kernel": state[f"blocks.{i}.linear.weight"].detach().numpy().T,
            "bias": state[f"blocks.{i}.linear.bias"].detach().numpy(),
        }
        for i, name in enumerate(names)
    }


def batches(models, member):
    return list(torch.from_numpy(models["inputs"][member]["x"]).split(BATCH))


class Trainer:
    """Return the batches of one task as fusion-bench asks for them."""

    _train_batch_size = BATCH

    def __init__(self, models, member):
        self.batches = batches(models, member)

    def get_train_dataloader(self):
        return [{"inputs": batch} for batch in self.batches]

    def _prepare_inputs(self, inputs):
        return inputs


def with_trainers(merge, models, **settings):
    nets = [Net(models["net"][member]) for member in MEMBERS]
    trainers = [Trainer(models, member) for member in MEMBERS]
    counts = [sum(map(len, trainer.batches)) for trainer in trainers]
    return tree_of(merge(nets, trainers, [], counts, **settings), nets[0].names)


class LayerByLayer(RegMeanAlgorithmPlusPlus):
    """Tell RegMean++ what the layers of an MLP are."""

    def __init__(self, models, alpha):
        super().__init__(
            num_regmean_examples=10**6,
            exclude_param_names_regex=[],
            reduce_non_diagonal_ratio=alpha,
            weight_transpose=True,
        )
        self.models = models

    def merge_embedding_layer(self, models_to_merge_dict):
        return {}

    def get_input_for_first_layer(self, model, train_dataset):
        return batches(self.models, train_dataset)

    def get_layers(self, model):
        return model.blocks

    def layer_batches_forward(self, layer, batches_input):
        return [layer(batch).detach() for batch in batches_input]

    def update_merged_params_dict(self, merged_params_dict, new_merged_params, layer_idx):
        return merged_params_dict | {f"blocks.{layer_idx}.{name}": x for name, x in new_merged_params.items()}

    def get_regmean_weights(self, model_name, layer, batches_input, linear_modules_to_merge):
        rows = torch.cat(batches_input)
        return {name: rows.T @ rows / len(rows) for name in linear_modules_to_merge}


class Pool(BaseModelPool):
    """Hold the networks; a task's data set is its name."""

    def load_train_dataset(self, dataset_name, *args, **kwargs):
        return dataset_name


def net_pool(models):
    return Pool({"_pretrained_": Net(models["net"]["base"]), **{name: Net(models["net"][name]) for name in MEMBERS}})


def regmean_pp(models, alpha):
    merged = LayerByLayer(models, alpha).run(net_pool(models))
    return tree_of(merged.state_dict(), merged.names)


class Entropy:
    """Tell AdaMerging where the batches of each task are."""

    def on_test_time_adaptation_start(self):
        self.streams = {name: itertools.cycle(batches(self.models, name)) for name in MEMBERS}

    def get_shuffled_test_loader_iter(self, task):
        return ((batch,) for batch in self.streams[task])

    def log_hyperparams(self, *args, **kwargs):
        pass


class TaskWise(Entropy, TaskWiseAdaMergingAlgorithm):
    """Learn one coefficient for each task."""

    def compute_logits(self, module, batch, task):
        return module(batch[0]).logits


class LayerWise(Entropy, LayerWiseAdaMergingAlgorithm):
    """Learn one coefficient for each task and tensor."""

    def compute_logits(self, module, images, task):
        return module(images).logits


def adamerging(models, kind, clamp):
    settings = {"weights": None, "init_values": 0.3, "clamp_weights": clamp, "tie_weights": False, "strict": True}
    algorithm = kind(DictConfig(settings | {"optimizer": "adam", "lr": 1e-2, "max_steps": 20}))
    algorithm.models = models
    fabric = lightning.Fabric(accelerator="cpu", devices=1)
    algorithm._fabric = algorithm._fabric_instance = fabric
    merged = algorithm.run(net_pool(models))
    return tree_of(merged.state_dict(), merged.names)


def slerp(family, members):
    return run(SlerpMergeAlgorithm(0.3), family, members, base=False)


def tsv_merge(family, leaves):
    return added(family, TSVM_utils.compute_and_sum_svd_mem_reduction(task_vectors(family, leaves), accelerator="cpu"))


def isotropic(family, leaves):
    return added(family, iso_c(task_vectors(family, leaves), accelerator="cpu"), 0.7)


FLAT = ["dense", "wide", "bias"]
MIXED = [*FLAT, "conv"]
TIES = {"remove_keys": [], "threshold": 20}
CASES = {
    "simple average": lambda m: run(SimpleAverageAlgorithm(), m["plain"], base=False),
    "weighted average": lambda m: run(WeightedAverageAlgorithm(False, [0.5, 0.3, 0.4]), m["plain"], base=False),
    "weighted average, normalized": lambda m: run(
        WeightedAverageAlgorithm(True, [0.5, 0.3, 0.4]), m["plain"], base=False
    ),
    "linear interpolation": lambda m: arrays(
        state_dict_interpolation([tensors(m["plain"]["a"]), tensors(m["plain"]["b"])], [0.7, 0.3])
    ),
    "linear interpolation, their class": lambda m: run(LinearInterpolationAlgorithm(0.3), m["plain"], "ab", base=False),
    "ExPO": lambda m: run(ExPOAlgorithm(0.3), m["plain"], ["a"]),
    "task arithmetic": lambda m: run(TaskArithmeticAlgorithm(0.3), m["plain"]),
    "TIES, sum": lambda m: run(TiesMergingAlgorithm(0.3, merge_func="sum", **TIES), m["tied"]),
    "TIES, mean": lambda m: run(TiesMergingAlgorithm(1.0, merge_func="mean", **TIES), m["tied"]),
    "DARE, nothing dropped": lambda m: run(DareTaskArithmetic(0.3, 0.0, False), m["plain"]),
    "DARE and TIES, nothing dropped": lambda m: run(DareTiesMerging(0.0, False, True, 1.0, 20, [], "mean"), m["plain"]),
    "SLERP": lambda m: slerp(m["plain"], "ab"),
    "SLERP, nearly parallel": lambda m: slerp(m["near"], "ab"),
    "model stock, two members": lambda m: run(ModelStock(), m["plain"], "ab"),
    "model stock, three members": lambda m: run(ModelStock(), m["plain"]),
    "MagMax": lambda m: run(MagMaxAlgorithm(0.5), m["tied"]),
    "EMR, one tensor": lambda m: emr(m["plain"], ["dense"]),
    "EMR": lambda m: emr(m["plain"], MIXED),
    "TALL masks": lambda m: flat_tall_masks(m["plain"]),
    "TALL masks, elements that no member moves": lambda m: flat_tall_masks(m["tied"]),
    "TALL masks, their class": lambda m: tall_masks_by_their_class(m["plain"]),
    "TALL masks, as their class makes them": lambda m: tall_masks_of_their_class(m["plain"]),
    "TSV-Merge": lambda m: tsv_merge(m["plain"], FLAT),
    "TSV-Merge, with a convolution": lambda m: tsv_merge(m["plain"], MIXED),
    "Iso-C": lambda m: isotropic(m["plain"], FLAT),
    "Iso-C, with a convolution": lambda m: isotropic(m["plain"], MIXED),
    "WUDI": lambda m: added(m["plain"], wudi_merging(task_vectors(m["plain"], FLAT), accelerator="cpu")),
    "Fisher, diagonals given": lambda m: fisher(m, False),
    "Fisher, diagonals given, normalized": lambda m: fisher(m, True),
    "Fisher, measured": lambda m: with_trainers(fisher_merging, m),
    "RegMean, Gram matrices given": lambda m: regmean(m, 0.75),
    "RegMean, measured": lambda m: with_trainers(regmean_merging, m, reduce_non_diagonal_ratio=0.75),
    "RegMean++, measured": lambda m: regmean_pp(m, 0.75),
    "AdaMerging, task-wise": lambda m: adamerging(m, TaskWise, False),
    "AdaMerging, task-wise, clamped": lambda m: adamerging(m, TaskWise, True),
    "AdaMerging, layer-wise": lambda m: adamerging(m, LayerWise, False),
    "share of elements that DARE keeps": kept_share,
    "mean factor of an element in DARE": mean_factor,
}

if __name__ == "__main__":
    torch.manual_seed(0)
    exchange.answer(CASES)
