"""Train vocabularies of SentencePiece in the forms of T5 and DeBERTa; for the interpreter that it is installed in.

    theirs_sentencepiece.py TEXTS.json FOLDER COUNT [RULES.tsv]

FOLDER gets t5/spiece.model and deberta/spm.model with COUNT pieces, and as transformers write them t5_json and
deberta_json with tokenizer.json. RULES.tsv: what becomes of characters; default: that of the released vocabularies.
"""

import io
import json
import pathlib
import sys

import sentencepiece
import transformers

FORMS = {
    "t5": {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1},
    "deberta": {"pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3, "pad_piece": "[PAD]", "bos_piece": "[CLS]"}
    | {"eos_piece": "[SEP]", "unk_piece": "[UNK]"},
}
FILES = {"t5": "spiece.model", "deberta": "spm.model"}
KINDS = {"t5": "T5Tokenizer", "deberta": "DebertaV2Tokenizer"}


def main(texts, folder, count, rules=None):
    """Train, and write."""
    texts = json.loads(pathlib.Path(texts).read_text(encoding="utf-8"))
    options = {"model_type": "unigram", "vocab_size": int(count), "hard_vocab_limit": False, "num_threads": 1}
    options["character_coverage"] = 0.999
    options |= {"normalization_rule_tsv": rules} if rules else {}
    for name, form in FORMS.items():
        out = io.BytesIO()
        sentences = iter([" ".join(text.split()) for text in texts])
        train = sentencepiece.SentencePieceTrainer.train
        train(sentence_iterator=sentences, model_writer=out, minloglevel=2, **options, **form)
        made = pathlib.Path(folder) / name
        made.mkdir()
        (made / FILES[name]).write_bytes(out.getvalue())
        if not rules:
            tokenizer = getattr(transformers, KINDS[name]).from_pretrained(made)
            tokenizer.save_pretrained(f"{made}_json")


if __name__ == "__main__":
    main(*sys.argv[1:])
