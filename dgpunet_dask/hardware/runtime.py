"""Which architectures the installed torch has code for: a card of another one cannot run it, however new it is.

torch keeps the list in its libraries, and importing it takes seconds. So it is asked once per version, in a process of its own, and the
answer is kept in a file. A torch without CUDA says so in its ``version.py``, which is read without running it.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import logging
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from dgpunet_dask.model.fleet import is_arch

log = logging.getLogger(__name__)

#: Set to arches such as ``sm_86 compute_120``, it stands in for the installed torch: for stages that bring their own in `env:`.
OVERRIDE: Final = "DGPUNET_RUNTIME_ARCHES"
#: Importing torch from a cold disk takes most of a minute.
ASK_S: Final = 90.0
#: `torch.cuda.get_arch_list` gives nothing where no driver is; this does.
_SCRIPT: Final = "import torch; print('arches', torch._C._cuda_getArchFlags() or '')"

Arches = tuple[str, ...]


def torch_arches(cache: Path | None = None) -> Arches | None:
    """Return the arches of the installed torch: empty for one without CUDA, ``None`` where there is no torch, or it does not tell.

    Parameters
    ----------
    cache
        The file in which answers are kept; ``None`` keeps none.
    """
    override = os.environ.get(OVERRIDE)
    if override is not None:
        return tuple(arch for arch in override.replace(",", " ").split() if is_arch(arch))
    version = installed_torch()
    if version is None:
        return None
    if version.get("cuda") is None:
        return ()
    key = f"{version.get('__version__')} {version.get('git_version')}"
    kept = _kept(cache)
    if key not in kept:
        arches = _asked()
        if arches is None:
            return None
        kept = {key: list(arches)}
        _keep(cache, kept)
    return tuple(kept[key])


def installed_torch() -> dict[str, Any] | None:
    """Return what the installed torch says of its version, without importing it: ``__version__``, ``cuda``, ``git_version``; ``None`` without one."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    try:
        return version_of(Path(spec.origin).with_name("version.py").read_text(encoding="utf-8")) or None
    except OSError:
        return None


def version_of(text: str) -> dict[str, Any]:
    """Return the plain values that torch's ``version.py`` sets; empty where it is no Python."""
    try:
        body = ast.parse(text).body
    except (SyntaxError, ValueError):
        return {}
    found = {}
    for line in body:
        target = line.targets[0] if isinstance(line, ast.Assign) else line.target if isinstance(line, ast.AnnAssign) else None
        value = getattr(line, "value", None)
        if isinstance(target, ast.Name) and isinstance(value, ast.Constant):
            found[target.id] = value.value
    return found


def arches_of(printed: str) -> Arches | None:
    """Return the arches in what the asking process printed, ``None`` where it did not get to it."""
    line = next((line for line in printed.splitlines() if line.startswith("arches")), None)
    return None if line is None else tuple(word for word in line.split()[1:] if is_arch(word))


def _asked() -> Arches | None:
    try:
        done = subprocess.run([sys.executable, "-c", _SCRIPT], capture_output=True, text=True, timeout=ASK_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        log.warning("which cards the installed torch can use is not known: %s", error)
        return None
    arches = arches_of(done.stdout)
    if arches is None:
        log.warning("which cards the installed torch can use is not known: %s", done.stderr.strip()[-500:])
    return arches


def _kept(cache: Path | None) -> Mapping[str, list[str]]:
    if cache is None:
        return {}
    try:
        found = json.loads(cache.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    whole = isinstance(found, dict) and all(isinstance(v, list) and all(isinstance(a, str) for a in v) for v in found.values())
    return found if whole else {}


def _keep(cache: Path | None, answers: Mapping[str, list[str]]) -> None:
    if cache is None:
        return
    try:
        cache.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = cache.with_name(f"{cache.name}.{os.getpid()}")
        draft.write_text(json.dumps(answers), encoding="utf-8")
        draft.replace(cache)
    except OSError as error:
        log.info("the arches of torch are asked again next time: %s", error)
