"""Tokenize texts and pairs of them with transformers; for the interpreter that it is installed in.

    theirs_text_tokenizer.py JOBS.json OUT.npz

A job has a "kind" of tokenizer, its "folder", "texts", "second" texts or null, and "length", "truncation", "side". The
kind "SentencePiece" is its own library, with the start and end tokens around its pieces, without pairs. OUT has for job
N the arrays N_tokens, N_mask and N_segments, padded to the longest row.
"""

import json
import pathlib
import sys

import numpy as np
import transformers


def pieces_of(job):
    """Return tokens, mask and segments as SentencePiece itself cuts texts."""
    import sentencepiece

    file = next(pathlib.Path(job["folder"]).glob("*.model"))
    model = sentencepiece.SentencePieceProcessor(model_file=str(file))
    start = [] if model.bos_id() < 0 else [model.bos_id()]
    most = job["length"] - len(start) - 1
    kept = slice(None, most) if job["side"] == "right" else slice(-most, None)
    rows = [[*start, *model.encode(text)[kept], model.eos_id()] for text in job["texts"]]
    longest = max(map(len, rows))
    tokens = np.array([row + [0] * (longest - len(row)) for row in rows])
    mask = np.arange(longest)[None] < np.array([len(row) for row in rows])[:, None]
    return {"tokens": tokens, "mask": mask.astype(int), "segments": np.zeros_like(tokens)}


def tokenized(job):
    """Return tokens, mask and segments."""
    if job["kind"] == "SentencePiece":
        return pieces_of(job)
    kind = getattr(transformers, job["kind"])
    tokenizer = kind.from_pretrained(job["folder"], truncation_side=job["side"], padding_side="right")
    options = {"max_length": job["length"], "truncation": job["truncation"], "padding": True, "return_tensors": "np"}
    names = {"tokens": "input_ids", "mask": "attention_mask", "segments": "token_type_ids"}
    made = tokenizer(job["texts"], job["second"], return_token_type_ids=True, return_attention_mask=True, **options)
    return {ours: made[theirs] for ours, theirs in names.items()}


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as file:
        jobs = json.load(file)
    found = {f"{n}_{name}": array for n, job in enumerate(jobs) for name, array in tokenized(job).items()}
    np.savez(sys.argv[2], version=transformers.__version__, **found)
