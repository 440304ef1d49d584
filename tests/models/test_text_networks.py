"""Hold encoders, decoders and T5 to what transformers computed, and to what all networks of texts have in common."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recorded_texts import (
    BERT,
    BERT_MLM,
    CLASSES,
    DEBERTA,
    DEBERTA_MLM,
    GPT2,
    LLAMA,
    MINILM,
    NAMES,
    ROBERTA,
    ROBERTA_MLM,
    T5,
    T5_GATED,
    UNTIED,
)

from soups import tree
from soups.models import decoder, t5, text_encoder
from soups.models.architectures import architecture
from soups.train import param_shardings


def seen(outputs, inputs):
    """Leave out what a network makes of padding."""
    outputs = np.asarray(outputs)
    of_tokens = outputs.ndim == 3 and "decoder_tokens" not in inputs
    return np.where(inputs["mask"][..., None], outputs, 0) if of_tokens else outputs


@pytest.mark.parametrize("folder", NAMES)
def test_outputs_equal_those_of_transformers(case, folder):
    arch, params, apply, inputs, expected = case(folder)
    tree.check_same_structure([arch.abstract(CLASSES.get(folder)), params])
    found = seen(apply(params, inputs), inputs).astype(np.float64)
    assert found.shape == expected.shape and np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("folder", NAMES)
def test_padding_is_not_seen(case, folder):
    _, params, apply, inputs, _ = case(folder)
    expected = seen(apply(params, inputs), inputs)
    for token in (1, 7):
        other = {**inputs, "tokens": np.where(inputs["mask"], inputs["tokens"], token)}
        np.testing.assert_array_equal(seen(apply(params, other), inputs), expected)


@pytest.mark.parametrize("folder", [BERT, MINILM, ROBERTA, DEBERTA, T5])
def test_every_token_of_the_mask_is_seen(case, folder):
    _, params, apply, inputs, _ = case(folder)
    expected, mask = np.asarray(apply(params, inputs)), inputs["mask"]
    for row, last in enumerate(mask.sum(axis=1) - 1):
        tokens = inputs["tokens"].copy()
        tokens[row, last] = 3 + (tokens[row, last] - 2) % 20
        differences = np.abs(np.asarray(apply(params, {**inputs, "tokens": tokens})) - expected)
        moved = differences.reshape(len(mask), -1).max(axis=1) > 1e-4
        assert moved.tolist() == [index == row for index in range(len(mask))]


@pytest.mark.parametrize(
    ("folder", "drawn"),
    [
        (BERT, {"2, 2, 4, 4", "2, 4, 8", "2, 8"}),  # attention, tokens, pooled
        (DEBERTA, {"2, 2, 4, 4", "2, 4, 8", "2, 8", "12, 8"}),  # and relative positions
        (LLAMA, {"2, 2, 2, 4, 4", "2, 4, 16"}),
        (T5, {"2, 2, 4, 4", "2, 2, 3, 3", "2, 2, 3, 4", "2, 4, 8", "2, 3, 8", "2, 4, 16", "2, 3, 16"}),
    ],
)
def test_dropout_is_on_in_training_alone(arch_of, folder, drawn):
    arch, classes = arch_of(folder), CLASSES.get(folder)
    params, inputs = arch.abstract(classes), {"tokens": np.zeros((2, 4), np.int32), "mask": np.ones((2, 4), bool)}
    if folder == T5:
        inputs["decoder_tokens"] = np.zeros((2, 3), np.int32)

    def draws(program):
        return set(re.findall(r"random_bits\[[^]]*shape=\(([\d, ]+)\)", str(jax.make_jaxpr(program)(params, inputs))))

    train = arch.train_apply_fn(classes, dropout=0.1)
    assert draws(arch.apply_fn(classes, dropout=0.1)) == set()
    assert draws(lambda p, x: train(p, x, jax.random.key(0))) == drawn


@pytest.mark.parametrize("folder", [BERT, LLAMA, T5_GATED])
def test_training_without_dropout_is_evaluation_and_remat_changes_nothing(case, folder):
    arch, params, apply, inputs, _ = case(folder)
    logits, same = jax.jit(arch.train_apply_fn(CLASSES.get(folder), remat=True))(params, inputs, jax.random.key(0))
    np.testing.assert_allclose(logits, apply(params, inputs), rtol=1e-4, atol=1e-5)
    tree.check_same_structure([params, same])


@pytest.mark.parametrize("folder", [ROBERTA_MLM, GPT2, UNTIED])
def test_bfloat16_keeps_float32_weights_and_outputs(arch_of, folder):
    model = arch_of(folder).model(None, dtype=jnp.bfloat16)
    inputs = {"tokens": np.ones((1, 3), np.int32), "mask": np.ones((1, 3), bool)}
    shapes = jax.eval_shape(model.init_with_output, jax.random.key(0), inputs)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {np.dtype(np.float32)}


@pytest.mark.parametrize(
    ("folder", "rules", "whole"),
    [
        (BERT_MLM, text_encoder, {"mlm/dense/kernel", "position_embedding/embedding", "segment_embedding/embedding"}),
        (DEBERTA_MLM, text_encoder, {"mlm/dense/kernel", "Transformer/relative_embedding/embedding"}),
        (GPT2, decoder, {"position_embedding/embedding"}),
        (UNTIED, decoder, set()),
        (T5_GATED, t5, {"encoder/relative_bias/embedding", "decoder/relative_bias/embedding"}),
    ],
)
def test_weights_sharded_by_the_rules_give_the_same(case, folder, rules, whole):
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    _, params, apply, inputs, _ = case(folder)
    shardings = param_shardings(params, mesh, rules.SHARDING_RULES)
    specs = {name: str(leaf.spec) for name, leaf in tree.flatten(shardings).items()}
    matrices = {name for name in specs if not name.endswith(("bias", "scale"))}
    assert {name for name in matrices if "model" not in specs[name]} == whole
    found = seen(apply(jax.device_put(params, shardings), inputs), inputs)
    np.testing.assert_allclose(found, seen(apply(params, inputs), inputs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("bert-base-uncased", 109_482_240),  # all as published, with the pooler
        ("bert-large-uncased", 335_141_888),
        ("roberta-base", 124_645_632 - 590_592),  # the pooler, which is not used
        ("minilm-l6", 22_713_216 - 147_840),
        ("deberta-v3-base", 183_831_552 + 590_592),  # the trunk and the pooler of DebertaV2ForSequenceClassification
        ("gpt2", 124_439_808),
        ("gpt2-medium", 354_823_168),
        ("gpt2-large", 774_030_080),
        ("gpt2-xl", 1_557_611_200),
        ("smollm2-135m", 134_515_008),
        ("t5-small", 60_506_624),
        ("t5-base", 222_903_552),
        ("t5-v1_1-small", 76_961_152),
        ("t5-v1_1-base", 247_577_856),
    ],
)
def test_networks_have_the_published_number_of_weights(name, count):
    assert tree.count(architecture(name).abstract(None)) == count
