"""Make the texts on which tokenizers are compared: prompts, and whatever people write and copy."""

import random
import string
import sys
import unicodedata

from soups.data.imagenet.protocol import class_names, templates

SCRIPTS = {
    "latin": (0xC0, 0x24F),
    "greek": (0x370, 0x3FF),
    "cyrillic": (0x400, 0x4FF),
    "armenian and hebrew": (0x530, 0x5FF),
    "arabic": (0x600, 0x6FF),
    "devanagari": (0x900, 0x97F),
    "thai": (0xE00, 0xE7F),
    "georgian and hangul jamo": (0x10A0, 0x11FF),
    "kana": (0x3040, 0x30FF),
    "han": (0x4E00, 0x9FFF),
    "hangul": (0xAC00, 0xD7A3),
    "mathematical": (0x1D400, 0x1D7FF),
    "symbols": (0x2000, 0x2BFF),
    "full width": (0xFF00, 0xFFEF),
}
# pieces, with | between them
EMOJI = "😀|👍🏽|👨‍👩‍👧‍👦|🏳️‍🌈|🇯🇵|🇫🇷|❤️|☕|🧑🏿‍🚀|1️⃣|🐕|🫠"
ENTITIES = (
    "&amp;|&lt;b&gt;|&quot;|&#39;|&#x1F600;|&nbsp;|&eacute;|&amp;amp;lt;|&copy|&rsquo;|&notit;|&#0;|&;|&Eacute;"
    "|&EACUTE;|&hellip;|&amp;#233;|&frac12;|<p>|&#xD800;"
)
SPACES = " |  |\t|\n|\r\n|\u00a0|\u2003|\u3000|\u200b|\x0b|\x0c|\x1f|\x85|\u2028"
BROKEN = (
    "cafÃ©|naÃ¯ve|â€œquotedâ€\x9d|itâ€™s|“curly”|‘single’|ﬁne ﬂow|ＦＵＬＬ|e\u0301|A\u030a|\ud800|\ufeffmark|\x00null"
    "|\x1b[31mred\x1b[0m|¯\\_(ツ)_/¯|l’Ŀl|Ĳssel|Ã\xa0 la carte|\x81"
)
CASES = "İstanbul|ΣΊΣΥΦΟΣ|STRAẞE|Straße|ǅungla|ŉ|'ſ|I'LL|don'T|we'Ve|ΐ|ᾼ|ⅣⅤ|\u212a|\u212b"
SPECIAL = ("<|startoftext|>", "<|endoftext|>", "<start_of_text>", "<end_of_text>", "<|EndOfText|>")


def groups(seed=0):
    """Return {group: texts}, 10,000 in all, and the group "special tokens" beside them."""
    draw = random.Random(seed)
    names, forms = class_names(), templates()

    def words(count):
        return " ".join(draw.choice(names) for _ in range(count))

    def mixed(pieces, separators=(" ", "", ", ")):
        pool = pieces.split("|")
        parts = (draw.choice([*pool, draw.choice(names)]) + draw.choice(separators) for _ in range(draw.randint(1, 9)))
        return draw.choice(pool) + "".join(parts)

    def long():
        return words(draw.randint(40, 120)) + letters(*draw.choice(list(SCRIPTS.values())), 200)

    def letters(low, high, count):
        points = [chr(c) for c in range(low, high + 1) if unicodedata.category(chr(c)) != "Cn"]
        return "".join(draw.choice(points) if draw.random() < 0.85 else " " for _ in range(count))

    def ascii_text():
        return "".join(draw.choices(string.ascii_letters * 3 + string.digits + string.punctuation + " " * 30, k=40))

    return {
        "prompts": [draw.choice(forms).replace("{}", draw.choice(names)) for _ in range(4000)],
        "ascii": [ascii_text() for _ in range(1600)],
        "scripts": [letters(*draw.choice(list(SCRIPTS.values())), draw.randint(1, 25)) for _ in range(1500)],
        "emoji": [mixed(EMOJI) for _ in range(500)],
        "html": [mixed(ENTITIES) for _ in range(600)],
        "white space": [mixed(SPACES, SPACES.split("|")) for _ in range(400)],
        "broken": [mixed(BROKEN) for _ in range(500)],
        "cases": [mixed(CASES) for _ in range(400)],
        "over-long": [long() for _ in range(500)],
        "special tokens": [words(2) + draw.choice(SPECIAL) + words(2) for _ in range(100)],
    }


def every_character():
    """Return texts that hold every assigned code point once, between letters and beside others, 12 in each text."""
    points = [chr(c) for c in range(sys.maxunicode + 1) if unicodedata.category(chr(c)) not in ("Cn", "Cs", "Co")]
    return [" ".join(f"a{c}b" for c in points[start : start + 12]) for start in range(0, len(points), 12)]
