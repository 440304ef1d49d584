"""Make a miniature of ImageNet, its shifts and a pool of fine-tuned CLIPs: make_miniature_imagenet.py DIR [--scale 4].

It takes half a minute (scale 1: 30 training images in each of 20 classes) to two minutes (4: 120, the most). Then the
experiments run on it, as scripts/miniature_imagenet.sh shows.
"""

import argparse
import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "tests"))


def main(arguments: list[str] | None = None) -> int:
    """Write the miniature and give the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", metavar="DIR", help="the folder to make")
    parser.add_argument("--seed", type=int, default=0, help="of the drawing and of the training")
    parser.add_argument("--scale", type=int, default=1, help="how many times as many images, 1 to 4")
    options = parser.parse_args(arguments)
    import jax
    from imagenet_miniature import make_miniature

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # the training step is needed twice
        jax.config.update("jax_compilation_cache_dir", os.path.abspath(".cache/jax"))
    try:
        print(make_miniature(options.directory, options.seed, options.scale))
    except (ValueError, OSError) as error:
        print(f"make_miniature_imagenet.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
