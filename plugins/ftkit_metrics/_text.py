"""Words of any script, and the choice of a ROUGE tokenizer by script. Light: uses the standard library only."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain

_ASCII_WORD = re.compile(r"[A-Za-z0-9]+")

# Scripts that put no spaces between words: each of their characters counts as a word.
_UNSPACED = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Burmese
    (0x1780, 0x17FF),  # Khmer
    (0x3005, 0x3007),  # Japanese iteration marks, ideographic zero
    (0x3040, 0x312F),  # Hiragana, Katakana, Bopomofo
    (0x31A0, 0x31FF),  # their extensions
    (0x3400, 0x9FFF),  # Han
    (0xF900, 0xFAFF),
    (0x20000, 0x3FFFF),
)
_SEPARATOR, _LETTER, _MARK, _ALONE, _IGNORED = range(5)

# Italian, which has few accents, has about 4 % of such words; English rarely more than 0.5 %.
_FOREIGN_SHARE = 0.02


@functools.cache
def _kind(char: str) -> int:
    category = unicodedata.category(char)
    if category[0] == "M":
        return _MARK
    if category == "Cf":  # joiners, soft hyphens, direction marks: invisible inside words
        return _IGNORED
    if not char.isalnum():
        return _SEPARATOR
    return _ALONE if any(low <= ord(char) <= high for low, high in _UNSPACED) else _LETTER


def words(text: str, lower: bool = True) -> list[str]:
    """Return the words of `text` after Unicode NFKC and lower-casing, without punctuation.

    A word is a run of letters and digits of any script with its marks. In a script without spaces between words
    (Chinese, Japanese, Thai, ...), each character is a word, with its marks.

    >>> words("Żółw's 2nd – кофе, 東京")
    ['żółw', 's', '2nd', 'кофе', '東', '京']
    """
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    if lower:
        text = text.lower()
    if text.isascii():
        return _ASCII_WORD.findall(text)
    found: list[str] = []
    last = _SEPARATOR
    for char in text:
        kind = _kind(char)
        if kind == _IGNORED:
            continue
        if kind == _ALONE or (kind == _LETTER and last != _LETTER):
            found.append(char)
        elif kind == _LETTER or (kind == _MARK and last != _SEPARATOR):
            found[-1] += char
            continue  # a mark does not end the word
        last = _SEPARATOR if kind == _MARK else kind
    return found


@dataclass(frozen=True)
class Choice:
    """A ROUGE tokenizer and the reason; `unspaced`: most of the references are in scripts without spaces."""

    tokenizer: str  # default or unicode
    reason: str
    unspaced: bool


def choose_tokenizer(references: Iterable[str]) -> Choice:
    """Choose rouge-score's own tokenizer for text in a-z and 0-9, and the Unicode tokenizer for all other text.

    rouge-score's tokenizer drops all characters but a-z and 0-9: it removes Russian words, and reduces "żółw" to "w".
    It is right for English, because published numbers use it, and an accent in a name must not change them. So
    words that begin with a capital do not count, unless there are no others, and up to 2 % of the other words may
    have letters outside a-z.
    """
    small: Counter[str] = Counter()  # words in lower case, by script; "" is a-z
    capital: Counter[str] = Counter()
    unspaced = total = 0
    for word in chain.from_iterable(words(text, lower=False) for text in references):
        total += 1
        unspaced += _kind(word[0]) == _ALONE
        if not word.isnumeric():
            (capital if word[0].isupper() else small)[_script(word)] += 1
    counted = small or capital
    n = counted.total()
    foreign_words = n - counted[""]
    mostly_unspaced = unspaced * 2 > total
    if not n:
        return Choice("default", "no words in the references", False)
    share = f"{100 * foreign_words / n:.1f} % of the words in the references have letters outside a-z"
    if foreign_words <= _FOREIGN_SHARE * n:
        return Choice("default", share, mostly_unspaced)
    script = max((s for s in counted if s), key=lambda s: (counted[s], s))
    return Choice("unicode", f"{share}, mostly {script}", mostly_unspaced)


def _script(word: str) -> str:
    """Return the script of the word's first letter outside a-z by its Unicode name; "" if it has none."""
    if word.isascii():
        return ""
    letters = (c for c in word if not c.isascii() and c.isalpha())
    return next((unicodedata.name(c, "other").replace("-", " ").split()[0] for c in letters), "")
