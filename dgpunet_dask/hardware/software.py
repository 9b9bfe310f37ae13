"""What is installed here, so that hosts can be compared: versions by name, and one hash over all packages that this one needs.

Nothing heavy is imported to find out: versions come from the packages' metadata, torch's CUDA from its own ``version.py``.
"""

from __future__ import annotations

import contextlib
import hashlib
import platform
import re
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from importlib import metadata
from typing import Any, Final

from dgpunet_dask import __version__
from dgpunet_dask.hardware.nvml import driver_versions
from dgpunet_dask.hardware.runtime import installed_torch
from dgpunet_dask.hardware.skew import Skew, compare

ROOT: Final = "dgpunet-dask"
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
    """
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
        torch_arches=None if arches is None else tuple(arches),
        numpy=_version("numpy"),
        openvino=_version("openvino"),
        faiss=_version("faiss-cpu", "faiss-gpu", "faiss"),
        driver=_dotted(driver),
        cuda_driver=_dotted(cuda),
        lock_hash=lock_hash(packages),
        packages=packages,
    )


def software_from(raw: Mapping[str, Any]) -> Software:
    """Return what another host told of itself, as JSON; what is missing, of another kind or not known here is not reported."""
    known: dict[str, Any] = {}
    for field in fields(Software):
        value = raw.get(field.name)
        if field.name in {"torch_arches", "packages"}:
            listed = isinstance(value, list | tuple) and all(isinstance(v, str) for v in value)
            known |= {field.name: tuple(value)} if listed and value is not None else {}
        elif isinstance(value, str):
            known[field.name] = value
    return Software(**known)


def compare_software(mine: Software, theirs: Software) -> list[Skew]:
    """Return how the software of two hosts differs, the worst first: what is alike is told as well, as ``ok``."""
    return compare(_named(mine), _named(theirs), mine.packages, theirs.packages)


def locked(root: str = ROOT, installed: Iterable[metadata.Distribution] | None = None) -> tuple[str, ...]:
    """Return ``name==version`` of `root` and of all that it needs, as far as installed, sorted by name.

    Markers other than extras are not weighed: what another platform needs is hardly installed on this one.
    """
    found = {_normal(d.name): d for d in (metadata.distributions() if installed is None else installed) if d.name}
    todo: deque[tuple[str, frozenset[str]]] = deque([(_normal(root), frozenset())])
    seen: set[tuple[str, frozenset[str]]] = set()
    while todo:
        one = todo.popleft()
        if one in seen or one[0] not in found:
            continue
        seen.add(one)
        todo.extend(_needs(found[one[0]].requires or (), one[1]))
    return tuple(sorted(f"{name}=={found[name].version}" for name in {name for name, _ in seen}))


def lock_hash(packages: Iterable[str]) -> str:
    """Return the SHA-256 of ``name==version`` lines, in hex; their order does not count."""
    return hashlib.sha256("".join(f"{line}\n" for line in sorted(packages)).encode()).hexdigest()


def _needs(requirements: Iterable[str], extras: frozenset[str]) -> Iterable[tuple[str, frozenset[str]]]:
    """Yield name and extras of each requirement that is always in force, or by one of `extras`."""
    for line in requirements:
        text, _, marker = line.partition(";")
        wanted = {_normal(extra) for extra in _EXTRA.findall(marker)}
        match = _NAME.match(text)
        if match is not None and (not wanted or wanted & extras):
            yield _normal(match[1]), frozenset(_normal(extra) for extra in (match[2] or "").split(",") if extra.strip())


def _named(software: Software) -> dict[str, str | None]:
    return {f.name: getattr(software, f.name) for f in fields(Software) if f.name not in {"torch_arches", "packages"}}


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
