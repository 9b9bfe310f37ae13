"""The search terms of a text: one function for what is indexed and for what is asked, so that either finds the other. Pure.

An identifier gives its parts, and where it has several also the whole without its joints: ``HTTPServer``, ``http_server`` and
``http-server`` all give ``httpserver``, ``http`` and ``server``. So an identifier is found by its exact name in any spelling,
which is rare and weighs much, and by the words it is made of. Forms of a word are one term (``parse``, ``parsed``,
``parsing``), which found more answers on each of four packages than whole words did; stronger stemmers than this found no more.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from itertools import chain
from typing import Final

#: Changes whenever a text would give other terms: what was indexed by others is then made anew.
WORDS_VERSION: Final = 1
#: Longer terms are data, not words; what is cut off is not searched for.
LONGEST: Final = 64
#: Runs of letters, digits and underscores, with those that hyphens join to them. Bounded, since data may be one run of megabytes.
_TOKEN: Final = re.compile(r"\w{1,256}(?:-\w{1,256}){0,15}")
#: Hyphens between these are kebab-case, any other one is a minus.
_KEBAB: Final = re.compile(r"[^\W\d_]{2,}(?:-[^\W\d_]{2,})+")
#: Parts of an identifier in ASCII: an acronym before a capitalised word, a word, an acronym, a number.
_PART: Final = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|[0-9]+")
#: Scripts that put no spaces between words are searched by pairs of characters.
_UNSPACED: Final = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]+")
#: Distinct identifiers whose parts are remembered. Code repeats itself: with this, terms come out of 16 MB of it a second, without it of 3.5.
_REMEMBERED: Final = 1 << 16
_JOINTS: Final = re.compile(r"[\W_]+")
#: The first that fits is taken off.
_ENDINGS: Final = ("ings", "ing", "ies", "ied", "ed", "es", "s", "e", "y")
#: What is left of a word must still tell it from others.
_LEAST_STEM: Final = 3
#: They say nothing about what is meant, but are rare in code, so that BM25 would take them for telling.
FUNCTION_WORDS: Final = frozenset(
    ("a", "an", "and", "any", "are", "as", "at", "be", "been", "but", "by", "can", "could", "did", "do", "does", "for",
     "from", "had", "has", "have", "how", "i", "if", "in", "into", "is", "it", "its", "itself", "may", "me", "my", "of",
     "on", "or", "our", "should", "so", "such", "than", "that", "the", "their", "them", "then", "there", "these", "they",
     "this", "those", "to", "was", "we", "were", "what", "when", "where", "which", "who", "why", "will", "with", "would",
     "you", "your")
)  # fmt: skip


def words(text: str) -> list[str]:
    """Return the lower-cased terms of `text`, in its order and with repetitions."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return list(chain.from_iterable(map(_terms, _TOKEN.findall(text))))


@lru_cache(_REMEMBERED)
def _terms(token: str) -> tuple[str, ...]:
    """Return the terms of one identifier: the whole first, then its parts."""
    if "-" in token and not _KEBAB.fullmatch(token):
        return tuple(chain.from_iterable(map(_terms, token.split("-"))))
    parts = _PART.findall(token) if token.isascii() else _unicode_parts(token)
    parts = [part.casefold()[:LONGEST] for part in parts]
    stems = tuple(map(stem, parts))
    return stems if len(parts) < 2 else ("".join(parts)[:LONGEST], *stems)


def stem(word: str) -> str:
    """Return what the forms of an English word have in common, roughly: plural, past and -ing."""
    for ending in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= _LEAST_STEM:
            word = word[: -len(ending)]
            break
    return word[:-1] if len(word) > _LEAST_STEM and word[-1] == word[-2] else word


@lru_cache(_REMEMBERED)
def whole(name: str) -> str:
    """Return a name without its joints, lower-cased and unshortened: what all spellings of it have in common."""
    return _JOINTS.sub("", unicodedata.normalize("NFKC", name)).casefold()


def _unicode_parts(token: str) -> list[str]:
    """Split as `_PART` does, for letters of any script: before a capital that follows a small letter or begins a word, and at digits."""
    parts: list[str] = []
    for run in re.split(r"[_-]+", token):
        at = 0
        for n in range(1, len(run)):
            if _border(run[n - 1], run[n], run[n + 1 : n + 2]):
                parts.append(run[at:n])
                at = n
        parts += [run[at:]] if run[at:] else []
    return list(chain.from_iterable(map(_pairs, parts)))


def _border(before: str, here: str, after: str) -> bool:
    if before.isdigit() != here.isdigit() or bool(_UNSPACED.match(before)) != bool(_UNSPACED.match(here)):
        return True
    return here.isupper() and (before.islower() or (before.isupper() and after.islower()))


def _pairs(part: str) -> list[str]:
    if len(part) < 3 or not _UNSPACED.fullmatch(part):
        return [part]
    return [part[n : n + 2] for n in range(len(part) - 1)]


def asked(query: str) -> list[str]:
    """Return the terms to search for: those of the query without English function words, unless it has no other."""
    terms = words(query)
    return [term for term in terms if term not in _ASKED_NOT] or terms


_ASKED_NOT: Final = frozenset(map(stem, FUNCTION_WORDS))
