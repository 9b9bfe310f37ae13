"""What is installed here, so that hosts can be compared: versions by name, and one hash over all packages that this one needs.

Nothing heavy is imported to find out: versions come from the packages' metadata, torch's CUDA from its own ``version.py``. It is asked once
per process, for what a process has imported stays as it was.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import platform
import re
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from email.parser import HeaderParser
from importlib import metadata
from typing import Any, Final, NamedTuple

from dgpunet_dask import __version__
from dgpunet_dask.errors import BadValue
from dgpunet_dask.hardware.nvml import driver_versions
from dgpunet_dask.hardware.runtime import installed_torch
from dgpunet_dask.hardware.skew import Skew, compare

ROOT: Final = "dgpunet-dask"
#: A JSON object of what to tell instead of what is so, as ``{"distributed": "2025.1.0"}``: an aid to try hosts that differ.
OVERRIDE: Final = "DGPUNET_SOFTWARE_OVERRIDE"
_LISTS: Final = frozenset({"torch_arches", "packages"})
_NAME: Final = re.compile(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)\s*(?:\[([^\]]*)\])?")
_EXTRA: Final = re.compile(r"""extra\s*==\s*['"]([^'"]+)['"]""")


@dataclass(frozen=True, kw_only=True)
class Software:
    """What computes on a host. ``None`` = not installed, or not reported.

    Parameters
    ----------
    torch_cuda
        The CUDA that torch was built for; ``None`` for a torch without.
    torch_arches
        What torch has code for, such as ``sm_86``; ``None`` where it was not asked, for asking takes seconds.
    driver, cuda_driver
        NVIDIA's driver, and the newest CUDA that it runs.
    lock_hash
        SHA-256 of `packages`, in hex: hosts with the same hash have the same packages.
    packages
        ``name==version`` of this package and all that it needs, as far as installed, sorted.
    """

    python: str | None = None
    os: str | None = None
    kernel: str | None = None
    machine: str | None = None
    dgpunet_dask: str | None = None
    dask: str | None = None
    distributed: str | None = None
    dask_cuda: str | None = None
    torch: str | None = None
    torch_cuda: str | None = None
    torch_arches: tuple[str, ...] | None = None
    numpy: str | None = None
    openvino: str | None = None
    faiss: str | None = None
    driver: str | None = None
    cuda_driver: str | None = None
    lock_hash: str | None = None
    packages: tuple[str, ...] = ()


def software_facts(arches: Sequence[str] | None = None) -> Software:
    """Return what is installed here.

    Parameters
    ----------
    arches
        What the installed torch has code for, where it was asked (`runtime.torch_arches`).

    Raises
    ------
    BadValue
        The environment's ``DGPUNET_SOFTWARE_OVERRIDE`` is no JSON object of what `Software` has.
    """
    facts = _facts(os.environ.get(OVERRIDE))
    return facts if arches is None else replace(facts, torch_arches=tuple(arches))


def software_from(raw: Mapping[str, Any]) -> Software:
    """Return what another host told of itself, as JSON; what is missing, of another kind or not known here is not reported."""
    known: dict[str, Any] = {}
    for field in fields(Software):
        value = raw.get(field.name)
        if field.name in _LISTS:
            listed = isinstance(value, list | tuple) and all(isinstance(v, str) for v in value)
            known |= {field.name: tuple(value)} if listed and value is not None else {}
        elif isinstance(value, str):
            known[field.name] = value
    return Software(**known)


def compare_software(mine: Software, theirs: Software) -> list[Skew]:
    """Return how the software of two hosts differs, the worst first: what is alike is told as well, as ``ok``."""
    return compare(_named(mine), _named(theirs), mine.packages, theirs.packages)


class Package(NamedTuple):
    """What a package's metadata say: its version, and the lines of its requirements."""

    version: str
    requires: Sequence[str] = ()


def installed_package(name: str) -> Package | None:
    """Return an installed package, ``None`` where there is none of that name."""
    try:
        found = metadata.distribution(name)
    except (metadata.PackageNotFoundError, ValueError):
        return None
    text = found.read_text("METADATA")
    if text is None:  # installed by an old tool, which keeps them elsewhere
        return Package(found.version, found.requires or ())
    headers = HeaderParser().parsestr(text.partition("\n\n")[0])  # what follows is the whole README, slow to parse
    return Package(str(headers["Version"]), [str(line) for line in headers.get_all("Requires-Dist", ())])


def locked(root: str = ROOT, find: Callable[[str], Package | None] = installed_package) -> tuple[str, ...]:
    """Return ``name==version`` of `root` and of all that it needs, as far as installed, sorted by name.

    Markers other than extras are not weighed: what another platform needs is hardly installed on this one.

    Parameters
    ----------
    find
        Tells of a package by its normal name (lower case, hyphens).
    """
    find = functools.cache(find)
    todo: deque[tuple[str, frozenset[str]]] = deque([(_normal(root), frozenset())])
    seen: set[tuple[str, frozenset[str]]] = set()
    versions: dict[str, str] = {}
    while todo:
        one = todo.popleft()
        package = None if one in seen else find(one[0])
        if package is None:
            continue
        seen.add(one)
        versions[one[0]] = package.version
        todo.extend(_needs(package.requires, one[1]))
    return tuple(f"{name}=={version}" for name, version in sorted(versions.items()))


def lock_hash(packages: Iterable[str]) -> str:
    """Return the SHA-256 of ``name==version`` lines, in hex; their order does not count."""
    return hashlib.sha256("".join(f"{line}\n" for line in sorted(packages)).encode()).hexdigest()


@functools.cache
def _facts(override: str | None) -> Software:
    return _asked() if override is None else _overridden(_facts(None), override)


def _asked() -> Software:
    packages = locked()
    torch = installed_torch() or {}
    driver, cuda = driver_versions()
    return Software(
        python=platform.python_version(),
        os=_system(),
        kernel=platform.release() or None,
        machine=platform.machine() or None,
        dgpunet_dask=__version__,
        dask=_version("dask"),
        distributed=_version("distributed"),
        dask_cuda=_version("dask-cuda"),
        torch=torch.get("__version__") or _version("torch"),
        torch_cuda=torch.get("cuda"),
        numpy=_version("numpy"),
        openvino=_version("openvino"),
        faiss=_version("faiss-cpu", "faiss-gpu", "faiss"),
        driver=_dotted(driver),
        cuda_driver=_dotted(cuda),
        lock_hash=lock_hash(packages) if packages else None,  # it runs from its sources: nothing says what it needs
        packages=packages,
    )


def _overridden(facts: Software, text: str) -> Software:
    """Return `facts` with what `text`, a JSON object, says instead; packages that are not these have another hash."""
    why = 'set it to a JSON object such as {"distributed": "2025.1.0"}, or unset it'
    try:
        told = json.loads(text)
    except ValueError:
        raise BadValue(what=OVERRIDE, value=text, why=why) from None
    known = {field.name for field in fields(Software)}
    if not isinstance(told, dict) or not told.keys() <= known:
        raise BadValue(what=OVERRIDE, value=text, why=f"{why}; it may have {', '.join(sorted(known))}")
    read = software_from(told)
    changed = {name: getattr(read, name) for name in told}
    if json.loads(json.dumps(changed)) != told:
        raise BadValue(what=OVERRIDE, value=text, why="packages and torch_arches are lists of texts, all else is a text or null")
    if "packages" in told and "lock_hash" not in told:
        changed["lock_hash"] = lock_hash(changed["packages"])
    return replace(facts, **changed)


def _needs(requirements: Iterable[str], extras: frozenset[str]) -> Iterable[tuple[str, frozenset[str]]]:
    """Yield name and extras of each requirement that is always in force, or by one of `extras`."""
    for line in requirements:
        text, _, marker = line.partition(";")
        wanted = {_normal(extra) for extra in _EXTRA.findall(marker)}
        match = _NAME.match(text)
        if match is not None and (not wanted or wanted & extras):
            yield _normal(match[1]), frozenset(_normal(extra) for extra in (match[2] or "").split(",") if extra.strip())


def _named(software: Software) -> dict[str, str | None]:
    return {f.name: getattr(software, f.name) for f in fields(Software) if f.name not in _LISTS}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def _version(*names: str) -> str | None:
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            return metadata.version(name)
    return None


def _system() -> str | None:
    """Return the system by its own name, such as ``Ubuntu 24.04.1 LTS``."""
    with contextlib.suppress(OSError, AttributeError):
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    return f"{platform.system()} {platform.mac_ver()[0]}".strip() or None


def _dotted(version: tuple[int, ...] | None) -> str | None:
    return None if version is None else ".".join(map(str, version))
