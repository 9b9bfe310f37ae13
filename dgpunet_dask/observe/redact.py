"""Takes out of a text what nobody else may read: keys, tokens, passwords, users' names; on request hosts' names too. Pure.

Every rule may take out too much, none too little. What is taken out is counted by the rule's name, so that a reader sees that something was there.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

GONE: Final = "[redacted]"

#: A value in quotes, in escaped quotes, in quotes that are never closed, or without any.
_VALUE: Final = r"""(?:\[redacted\]|\\+"[^\n]*?\\+"|"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*'|["'][^\n]*|\S+)"""
#: Between a name and its value, as Python, JSON, YAML, a shell or HTTP write it.
_IS: Final = r"""\\*["']?\s*(?:=>|[:=]+)\s*"""
#: A name that holds one, wherever it stands in a longer name: ``db.password``, ``x-api-key``.
_NAMES: Final = r"password|passwd|passphrase|pwd|secret|api[_-]?key|access[_-]?key|private[_-]?key|auth[_-]?key|credential|cookie|session[_-]?id"
#: What no secret is: a count, or nothing.
_COUNT: Final = r"""\\*["']?(?:[\d.]{1,9}|null|none|true|false)\\*["']?(?=[\s,;)\]}]|$)"""
_RULES: Final[tuple[tuple[str, re.Pattern[str], str], ...]] = tuple(
    (name, re.compile(pattern, flags), put)
    for name, pattern, flags, put in (
        # one that is cut off at its end is taken out to the text's end
        ("private key", r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL, GONE),
        ("private key", r"\A.*?-----END [A-Z ]*PRIVATE KEY-----", re.DOTALL, GONE),
        ("private key", r"^[A-Za-z0-9+/=]{60,76}$", re.MULTILINE, GONE),
        ("token", r"DG[0-9A-Z]{2,3}[0-9a-fA-F]{16,}(?:::[^\s\"'<>]*)?", 0, GONE),
        ("API key", r"\b(?:hf_|sk-|ghp_|gho_|ghu_|ghs_|ghr_|github_pat_|glpat-|xox[abpr]-|AKIA|ASIA)[A-Za-z0-9_-]{12,}", 0, GONE),
        ("web token", r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}(?:\.[A-Za-z0-9_-]*)?", 0, GONE),
        ("header", r"(?i)\b((?:proxy-)?authorization|(?:set-)?cookie)(\\*[\"']?\s*[:=,]\s*)[^\n]*", 0, rf"\1\2{GONE}"),
        ("header", r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=:-]{6,}", 0, rf"\1 {GONE}"),
        ("URL", r"(?i)\b([a-z][a-z0-9+.-]*://)[^\s/\"'<>]*@", 0, rf"\1{GONE}@"),
        ("named secret", rf"(?i)((?:{_NAMES})[\w.-]{{0,64}}{_IS}){_VALUE}", 0, rf"\1{GONE}"),
        # `tokens: 512` is a count, and tokenizers are software
        ("named secret", rf"(?i)(token(?!iz)[\w.-]{{0,64}}{_IS})(?!{_COUNT}){_VALUE}", 0, rf"\1{GONE}"),
        ("named secret", rf"(?i)((?<![\w.-])key{_IS})(?=\\*[\"']?[A-Za-z0-9_-]{{24,}}){_VALUE}", 0, rf"\1{GONE}"),
    )
)
_HOME: Final = re.compile(r"(?<![\w.-])/(?:home|Users|var/home|export/home)/[^/\s\"':,;)\]}]+")
_ROOT: Final = re.compile(r"(?<![\w./-])/root(?=[/\s\"':,;)\]}]|$)")
_IPV4: Final = re.compile(r"(?<![\d.])(?!127\.|0\.0\.0\.0)(?:\d{1,3}\.){3}\d{1,3}(?![\d.])")


_IPV6: Final = re.compile(
    r"(?i)(?<![\w:.])(?:(?:[0-9a-f]{1,4}:){7}[0-9a-f]{1,4}|(?:[0-9a-f]{1,4}:){1,6}(?::[0-9a-f]{1,4}){1,6})(?![\w:])"
)


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What to take out beyond what looks like a secret.

    Parameters
    ----------
    secrets
        Known secrets, to be taken out wherever they stand.
    homes
        Home folders, which become ``~``.
    users
        Users' names, which become ``user``.
    hosts
        Hosts' names, which become ``host-`` and a digest, as do addresses; empty keeps both.
    salt
        Makes the digests differ from report to report, so that nobody can look a name up.
    """

    secrets: Collection[str] = ()
    homes: Collection[str] = ()
    users: Collection[str] = ()
    hosts: Collection[str] = ()
    salt: str = ""


def redact(text: str, rules: Rules) -> tuple[str, Counter[str]]:
    """Return `text` without what nobody else may read, and how often each kind was taken out. Doing it twice changes nothing."""
    count: Counter[str] = Counter()
    text = _words(text, rules.secrets, "known secret", lambda _: GONE, count, anywhere=True)
    for name, pattern, put in _RULES:
        text = _replaced(text, name, pattern, put, count)
    text = _words(text, [home for home in rules.homes if len(home) > 1], "home folder", lambda _: "~", count, anywhere=True)
    for pattern in (_HOME, _ROOT):
        text = _replaced(text, "home folder", pattern, "~", count)
    text = _words(text, rules.users, "user", lambda _: "user", count)
    if rules.hosts:
        text = _words(text, rules.hosts, "host", lambda name: pseudonym(name, rules.salt), count)
        for pattern in (_IPV4, _IPV6):
            text = _replaced(text, "address", pattern, lambda found: pseudonym(found[0], rules.salt), count)
    return text, count


def pseudonym(name: str, salt: str) -> str:
    """Return what stands for a host's name: the same within one report, another in the next."""
    return "host-" + hashlib.sha256(f"{salt}\0{name.lower()}".encode()).hexdigest()[:8]


def _replaced(text: str, name: str, pattern: re.Pattern[str], put: str | Callable[[re.Match[str]], str], count: Counter[str]) -> str:
    def one(found: re.Match[str]) -> str:
        new = found.expand(put) if isinstance(put, str) else put(found)
        count[name] += new != found[0]
        return new

    return pattern.sub(one, text)


def _words(
    text: str, words: Iterable[str], name: str, put: Callable[[str], str], count: Counter[str], *, anywhere: bool = False
) -> str:  # fmt: skip
    """Replace each of some words, the longest first; inside longer words only where that is asked for."""
    known = sorted({word for word in words if len(word) > 1}, key=lambda word: (-len(word), word))
    if not known:
        return text
    either = "|".join(map(re.escape, known))
    pattern = re.compile(either if anywhere else rf"(?i)(?<![A-Za-z0-9_])(?:{either})(?![A-Za-z0-9_])")
    return _replaced(text, name, pattern, lambda found: put(found[0]), count)


_PREFIXED: Final = re.compile(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d")
_FRAME: Final = re.compile(r'\s+File "[^"]*", line \d+')
_RAISED: Final = re.compile(r"(?:[A-Za-z_][\w.]*\.)?[A-Z]\w*(?:Error|Exception|Interrupt|Warning|Exit|Killed\w*|Lost|Full|Failed)\b")
LEFT_OUT: Final = "[left out]"


def without_output(text: str) -> tuple[str, int]:
    """Return the lines of a log that a logger wrote, and how many others were left out.

    What stages print stands between them, and may be the users' text. Of a traceback the frames stay and the exception's class: its
    message may quote what was worked on.
    """
    kept, left = list[str](), 0
    for line in text.splitlines():
        raised = _RAISED.match(line)
        if _PREFIXED.match(line) or _FRAME.match(line) or line.startswith("Traceback (most recent call last)"):
            kept.append(line)
        elif raised is not None:
            kept.append(f"{raised[0]}: {LEFT_OUT}")
        else:
            left += bool(line.strip())
    return "".join(f"{line}\n" for line in kept), left


def shortened(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return a job's parameters so that they tell kind and size: paths by their last part, texts by their length."""
    return {str(key): _short(value) for key, value in params.items()}


def _short(value: Any) -> Any:
    if isinstance(value, bool | int | float) or value is None:
        return value
    if isinstance(value, list | tuple):
        return [_short(item) for item in value]
    if isinstance(value, Mapping):
        return shortened(value)
    text = str(value)
    path = text.startswith(("/", "~", "./", "../")) and "\n" not in text
    return f".../{text.rstrip('/').rpartition('/')[2]}" if path else f"[{len(text)} characters]"
