"""The folders that come with the product: ``workloads/`` and ``policies/``.

They lie at the top of a source checkout, where an editable install finds them too, and under ``dgpunet_dask/_shipped`` in a wheel.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal

from dgpunet_dask.errors import MissingPath

_PACKAGE: Final = Path(__file__).resolve().parent.parent


def shipped(kind: Literal["workloads", "policies"], package: Path = _PACKAGE) -> Path:
    """Return the folder of what is shipped, in a checkout or in an installed wheel.

    Parameters
    ----------
    kind
        Which of the two folders.
    package
        The folder of `dgpunet_dask`; given by tests only.

    Raises
    ------
    MissingPath
        If the installation lacks it.
    """
    installed = package / "_shipped" / kind
    if installed.is_dir():
        return installed
    checkout = package.parent / kind
    if checkout.is_dir() and (package.parent / "pyproject.toml").is_file():
        return checkout
    raise MissingPath(path=installed)
