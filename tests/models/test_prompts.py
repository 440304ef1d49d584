"""Ask masked language models: prompts by hand from the published protocol, scores of words, and what is refused."""

import json
import pathlib

import jax
import numpy as np
import pytest

from soups.models import functional, import_weights
from soups.models.prompts import LIMITS, PROMPTS, Prompt, PromptTokenizer, at_mask, word_head
from soups.models.text_tokenizer import text_tokenizer

RECORDED = pathlib.Path(__file__).parent / "recorded" / "models"
WORDS = ["It", "was", "This", "is", "great", "terrible", "Yes", "No", "Maybe", "subjective", "objective"]
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


@pytest.fixture(scope="module")
def tokenize(tmp_path_factory):
    """Return a function from a length to a tokenizer like RoBERTa's, whose long tokens are `WORDS` after a blank."""
    folder, merges = tmp_path_factory.mktemp("pairs"), []
    for word in WORDS:
        merges += [f"{('Ġ' + word)[: at + 1]} {word[at]}" for at in range(len(word))]
    tokens = [*SPECIAL, *map(chr, range(33, 127)), "Ġ"]
    tokens += dict.fromkeys(merge.replace(" ", "") for merge in merges)
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("\n".join(dict.fromkeys(merges)))
    return lambda length: text_tokenizer(folder, length=length)


def read(tokenize, inputs):
    """Return the tokens of each row, without padding, as one line."""
    names = {number: token for token, number in tokenize.tokenizer.get_vocab().items()}
    return [
        " ".join(names[number] for number in row[mask])
        for row, mask in zip(inputs["tokens"], inputs["mask"], strict=True)
    ]


# as the protocol of LM-BFF writes them: each part by itself, the label word's place with no blank before it
BY_HAND = [
    ("sst-2", "xy z.", None, "<s> x y Ġ z . ĠIt Ġwas <mask> . </s>"),
    ("subj", "xy", None, "<s> x y ĠThis Ġis <mask> . </s>"),
    ("trec", "Xy ?", None, "<s> <mask> : Ġ X y Ġ ? </s>"),
    ("rte", "Xy.", "Zq.", "<s> X y ? <mask> , Ġ z q . </s>"),
    ("snli", "Xy", "Zq", "<s> X ? <mask> , Ġ z q </s>"),  # the last character goes, whatever it is
    ("mrpc", "Xy.", "ZQ.", "<s> X y . <mask> , Ġ z Q . </s>"),
]


@pytest.mark.parametrize(("task", "first", "second", "expected"), BY_HAND)
def test_prompts_are_those_of_the_protocol(tokenize, task, first, second, expected):
    ask = PromptTokenizer(tokenize(64), PROMPTS[task], LIMITS.get(task))
    inputs = ask([first], None if second is None else [second])
    assert read(ask.tokenize, inputs) == [expected]
    assert not inputs["segments"].any() and inputs["tokens"].dtype == inputs["segments"].dtype == np.int32


def test_long_first_texts_end_at_their_limit_and_long_rows_keep_their_end(tokenize):
    limited = PromptTokenizer(tokenize(64), PROMPTS["mr"], limit=3)
    assert read(limited.tokenize, limited(["abcdefg"])) == ["<s> a b c ĠIt Ġwas <mask> . </s>"]
    short = PromptTokenizer(tokenize(8), PROMPTS["mr"])
    found = short.encode(["a", "abcdefghijklmnop"])
    assert read(short.tokenize, found.inputs) == ["<s> a ĠIt Ġwas <mask> . </s>", "n o p ĠIt Ġwas <mask> . </s>"]
    assert found.cut == 1


def test_label_words_are_in_the_order_of_the_classes(tokenize):
    ask = PromptTokenizer(tokenize(32), PROMPTS["mnli"])
    vocabulary = ask.tokenize.tokenizer.get_vocab()
    found = ask.word_ids(("neutral", "contradiction", "entailment"))
    assert found == [vocabulary[f"Ġ{word}"] for word in ("Maybe", "No", "Yes")]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"0": "great", "1": "good"}, r"each class needs a word that is one token:\n  'good' of class '1' is 4 tokens"),
        ({"0": "great"}, "the prompt has no words for the classes 1, only for 0"),
        ({"0": "great", "1": "great"}, "two classes have the same word: great, great"),
    ],
)
def test_words_that_cannot_stand_for_classes_are_named(tokenize, words, message):
    ask = PromptTokenizer(tokenize(32), Prompt("{first} It was{mask}.", words))
    with pytest.raises(ValueError, match=message):
        ask.word_ids(("0", "1"))


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{first} It was.", "{mask} is missing"),
        ("It was{mask}.", "{first} is missing"),
        ("{first}{mask}{mask}", "{mask} is there twice"),
        ("{first} {third}{mask}", "{third} is not a field"),
    ],
)
def test_templates_have_their_fields_once(tokenize, template, message):
    with pytest.raises(ValueError, match=message):
        PromptTokenizer(tokenize(32), Prompt(template, {}))


def test_prompts_without_a_mask_and_texts_in_other_numbers_are_errors(tokenize):
    with pytest.raises(ValueError, match=r"1 prompt of 2, the first is number 1, must have one mask: of more than 6"):
        PromptTokenizer(tokenize(6), PROMPTS["trec"])(["a", "abcdef"])
    with pytest.raises(ValueError, match="a text must not hold the mask's token"):
        PromptTokenizer(tokenize(32), PROMPTS["mr"])(["a<mask>"])
    with pytest.raises(ValueError, match="is for pairs, but the task has texts alone"):
        PromptTokenizer(tokenize(32), PROMPTS["rte"])(["a"])
    with pytest.raises(ValueError, match="is for texts alone, but the task has pairs"):
        PromptTokenizer(tokenize(32), PROMPTS["mr"])(["a"], ["b"])


@pytest.mark.parametrize("name", ["BERT-MLM-bert-base-uncased-mlm", "RoBERTa-MLM-roberta-base-mlm"])
def test_scores_at_the_mask_are_those_of_the_masked_language_model(small, tokenize, name):
    arch, mask, words = small(name.split("MLM-")[1]), SPECIAL.index("<mask>"), [7, 11, 3]
    params = import_weights(RECORDED / f"transformers-{name}", arch)
    inputs = {"tokens": np.array([[5, 6, mask, 8], [mask, 9, 1, 1]], np.int32)}
    inputs["mask"] = np.array([[True] * 4, [True, True, False, False]])
    whole = jax.jit(arch.apply_fn(None))(params, inputs)
    ended = at_mask(arch, tokenize(8))
    found = jax.jit(ended.apply_fn(3))({**params, "head": word_head(params, words)}, inputs)
    expected = np.stack([whole[0, 2, np.array(words)], whole[1, 0, np.array(words)]])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    fresh = functional.init(ended.model(3), jax.random.key(0), inputs)
    assert fresh.keys() == params.keys() | {"head"} and fresh["Transformer"].keys() == params["Transformer"].keys()


def test_a_network_without_the_head_of_pre_training_has_no_words(small, tokenize):
    with pytest.raises(ValueError, match="bert-base-uncased has no head for masked words: take the architecture"):
        at_mask(small("bert-base-uncased"), tokenize(8))
    assert at_mask(small("roberta-base-mlm"), tokenize(8)).features.mask_token == SPECIAL.index("<mask>")
