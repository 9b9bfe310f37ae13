"""Questions from a repository's history: a commit's subject asks for the functions that it edited, in the tree as it is now.

Taken are commits with one parent that edited one to five functions which still exist under their path and name; tests are left
out, of the pool too. The answer of a question is any of its functions.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

from docstring_corpus import NOT_LIBRARY, Corpus, Question, corpus_of, spans_of

MOST_FUNCTIONS = 5
LEAST_WORDS = 3
_HUNK = re.compile(r"^@@ -\S+ \+(\d+)(?:,(\d+))? @@", re.MULTILINE)


def git(repository: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", repository, *arguments], capture_output=True, check=True)
    return done.stdout.decode(errors="replace")


def commit_corpus(repository: Path, limit: int, under: str = "") -> tuple[Corpus, list[tuple[str, list[Question]]]]:
    """Return the tree at HEAD below a folder, and for the newest fit commits, at most `limit`, their subject and what they edited."""
    paths = [p for p in git(repository, "ls-tree", "-r", "--name-only", "HEAD").splitlines() if _fit(p) and p.startswith(under)]
    texts = {p: git(repository, "show", f"HEAD:{p}").replace("\r\n", "\n") for p in paths}
    corpus = corpus_of(repository.name, iter(texts.items()), keep_repeats=True)
    now = {path: spans_of(texts[path]) for path in corpus.files}
    found: list[tuple[str, list[Question]]] = []
    for line in git(repository, "log", "--no-merges", "--format=%H %s").splitlines():
        commit, _, subject = line.partition(" ")
        if len(subject.split()) < LEAST_WORDS:
            continue
        edited = sorted({(p, name) for p, name in _edited(repository, commit) if name in now.get(p, {})})
        if 1 <= len(edited) <= MOST_FUNCTIONS:
            found.append((subject, [Question(subject, path, *now[path][name], name) for path, name in edited]))
        if len(found) == limit:
            break
    return corpus, found


def _fit(path: str) -> bool:
    return path.endswith(".py") and not set(path.split("/")) & set(NOT_LIBRARY)


def _edited(repository: Path, commit: str) -> Iterator[tuple[str, str]]:
    patch = git(repository, "diff-tree", "-p", "-U0", "--no-commit-id", "--no-renames", "--diff-filter=M", "--root", commit, "--", "*.py")
    for part in re.split(r"^diff --git ", patch, flags=re.MULTILINE)[1:]:
        header = re.search(r"^\+\+\+ b/(.*)$", part, re.MULTILINE)
        if header is None or not _fit(header[1]):
            continue
        spans = spans_of(git(repository, "show", f"{commit}:{header[1]}"))
        for start, count in _HUNK.findall(part):
            first, last = int(start), int(start) + max(1, int(count or 1)) - 1
            # the innermost function alone: what is around it was not meant
            around = [(end - begin, name) for name, (begin, end) in spans.items() if begin <= last and first <= end]
            if around:
                yield header[1], min(around)[1]
