"""Make an image classifier from a CLIP and the names of the classes, without any training.

    python scripts/zero_shot.py --arch clip-vit-b32 --clip CLIP.pt --tokenizer FOLDER --out OUT
    python scripts/zero_shot.py ... --classes NAMES.txt --templates TEMPLATES.txt

OUT becomes an Orbax checkpoint: the image tower of CLIP.pt under a head from the names of ImageNet's 1000 classes in
OpenAI's 80 templates, or from files with one name, or one template with "{}", a line. It is a member of a pool after
`soups pool add POOL zero_shot OUT`, and start weights of a fine-tune. FOLDER has CLIP's vocabulary:
vocab.json and merges.txt, tokenizer.json, or bpe_simple_vocab_16e6.txt.gz.
"""

import argparse
import functools
import pathlib
import sys

import jax

from soups.data.imagenet import protocol
from soups.formats.text import read_text
from soups.models.clip_tokenizer import clip_tokenizer
from soups.models.zero_shot import zero_shot_head
from soups.progress import progress


def main(arguments: list[str] | None = None) -> int:
    """Make the classifier and give the exit code: 0, or 2 if it cannot be made."""
    options = _options(arguments)
    try:
        make(options)
    except (ValueError, OSError) as error:
        print(f"zero_shot.py: {error}", file=sys.stderr)
        return 2
    return 0


def make(options) -> None:
    """Read the towers, encode all prompts, and write the checkpoint."""
    from soups.models.clip_text import import_text_tower, text_features
    from soups.models.import_weights import import_weights
    from soups.pool import save_checkpoint

    if options.out.exists():
        raise FileExistsError(f"{options.out} exists: a checkpoint is written to a new place")
    names = _lines(options.classes) if options.classes else protocol.class_names()
    templates = _lines(options.templates) if options.templates else protocol.templates()
    tokenizer = clip_tokenizer(options.tokenizer)
    classifier = import_weights(options.clip, options.arch)
    text = jax.device_put(import_text_tower(options.clip, options.arch))
    _check_vocabulary(tokenizer, text, options)
    encode = jax.jit(functools.partial(text_features, arch=options.arch))
    with progress("zero-shot head", len(names), "classes") as advance:
        head = zero_shot_head(
            functools.partial(encode, text),
            tokenizer,
            names,
            templates,
            options.scale,
            batch_size=options.batch_size,
            progress=advance,
        )
    save_checkpoint(options.out, {**classifier, "head": head})
    print(f"wrote {options.out}: {options.arch}, {len(names)} classes from {len(templates)} templates")


def _check_vocabulary(tokenizer, text, options):
    # the end token has the last number; a row that is not there would be read as the last one without a word
    tokens, rows = int(tokenizer([""]).max()) + 1, text["token_embedding"]["embedding"].shape[0]
    if tokens != rows:
        raise ValueError(f"the vocabulary in {options.tokenizer} has {tokens} tokens, but {options.clip} has {rows}")


def _lines(path):
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]


def _options(arguments):
    parser = argparse.ArgumentParser(
        prog="zero_shot.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arch", required=True, help="such as clip-vit-b32, see soups/models/architectures.py")
    parser.add_argument("--clip", required=True, metavar="FILE", help="weights with both towers")
    parser.add_argument("--tokenizer", required=True, metavar="FOLDER", help="with CLIP's vocabulary")
    parser.add_argument("--out", required=True, type=pathlib.Path, metavar="OUT", help="the new checkpoint")
    parser.add_argument("--classes", type=pathlib.Path, metavar="FILE", help="names, in the order of the labels")
    parser.add_argument("--templates", type=pathlib.Path, metavar="FILE", help='prompts with "{}" for the name')
    parser.add_argument("--scale", type=float, default=100.0, help="of the head; 100 as published")
    parser.add_argument("--batch-size", type=int, default=256, help="prompts at once")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
