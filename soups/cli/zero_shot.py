"""Make an image classifier from CLIP and the names of classes.

soups zero-shot --arch clip-vit-b32 --clip CLIP.pt --tokenizer DIR --out OUT

OUT becomes an Orbax checkpoint: the image tower of CLIP.pt under a head from
the names of ImageNet's 1000 classes in OpenAI's 80 templates, or from files of
yours with one name, or one template with "{}", on each line. A fine-tune can
start from it, and `soups pool add POOL zero_shot OUT` makes it a member.
DIR has CLIP's vocabulary: vocab.json and merges.txt, tokenizer.json, or
bpe_simple_vocab_16e6.txt.gz.
"""

import functools
import pathlib

import jax

from soups.cli.options import Parser, path_argument
from soups.cli.show import say
from soups.formats.text import numbered_lines, read_text
from soups.lazy import extra
from soups.names import count_of
from soups.pool import save_checkpoint
from soups.progress import progress

with extra("data", "text", "train"):
    from soups.data.imagenet import protocol
    from soups.models.clip_text import check_vocabulary, import_text_tower, text_features
    from soups.models.clip_tokenizer import clip_tokenizer
    from soups.models.import_weights import import_weights
    from soups.models.zero_shot import zero_shot_head


def main(arguments: list[str], run) -> int:
    """Read the towers, encode all prompts, write the checkpoint, and return the exit code."""
    run.less_memory = "a smaller --batch-size needs less"
    options = parser(run.prog).parse(arguments)
    out = pathlib.Path(options.out)
    if out.exists():
        raise FileExistsError(f"{out} exists: choose a new path for the checkpoint")
    names = _lines(options.classes) if options.classes else protocol.class_names()
    templates = _lines(options.templates) if options.templates else protocol.templates()
    tokenizer = clip_tokenizer(options.tokenizer)
    classifier = import_weights(options.clip, options.arch)
    text = jax.device_put(import_text_tower(options.clip, options.arch))
    check_vocabulary(tokenizer, options.tokenizer, text, options.clip)
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
    save_checkpoint(out, {**classifier, "head": head})
    say(f"wrote {out}: {options.arch}, {len(names)} classes from {count_of(len(templates), 'template')}")
    run.made(out)
    return 0


def _lines(path):
    return [line.strip() for _, line in numbered_lines(read_text(path))]


def parser(prog: str) -> Parser:
    """Return the parser of the options."""
    parser, path = Parser(prog=prog, description=__doc__), {"type": path_argument}
    parser.add_argument("--arch", required=True, metavar="ARCHITECTURE", help="a CLIP network, such as clip-vit-b32")
    parser.add_argument("--clip", required=True, metavar="FILE", **path, help="weights with both towers")
    parser.add_argument("--tokenizer", required=True, metavar="DIR", **path, help="a folder with CLIP's vocabulary")
    parser.add_argument("--out", required=True, metavar="OUT", **path, help="the new checkpoint")
    parser.add_argument("--classes", metavar="FILE", **path, help="names, in the order of the labels")
    parser.add_argument("--templates", metavar="FILE", **path, help='prompts with "{}" for the name')
    parser.add_argument("--scale", type=float, default=100.0, metavar="X", help="scale of the head; default: 100")
    parser.add_argument("--batch-size", type=int, default=256, metavar="N", help="prompts at once; default: 256")
    return parser
