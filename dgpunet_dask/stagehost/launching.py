"""What a stage host is started with: the interpreter's command line, its environment variables, the import path."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import dgpunet_dask
from dgpunet_dask.stagehost.child import LIFELINE_VARIABLE, LOW_PRIORITY
from dgpunet_dask.stagehost.spec import StageCallSpec

#: What the numeric libraries read for their number of threads.
THREAD_VARIABLES: Final = (
    "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS", "NUMEXPR_NUM_THREADS", "RAYON_NUM_THREADS",
)  # fmt: skip
#: Of the agent's own interpreter; wrong for any other.
_OF_OUR_PYTHON: Final = ("PYTHONHOME", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__")


def command(python: Path | None, spec: StageCallSpec) -> list[str]:
    """Return the command line of a stage host in the interpreter `python` (``None``: the agent's own).

    ``-P`` keeps the working directory off the import path.
    """
    started = [str(python or sys.executable), "-P", "-m", "dgpunet_dask.stagehost.child"]
    return started if spec.interactive else [*started, LOW_PRIORITY]


def environ(
    spec: StageCallSpec, own_interpreter: bool, import_dir: Path, lifeline: int, card: str | None, base: Mapping[str, str]
) -> dict[str, str]:
    """Return the environment variables of a stage host.

    Parameters
    ----------
    own_interpreter
        Whether the stage has an environment of its own, where nothing of ours may be imported but this package.
    import_dir
        The folder that `link_package` made.
    card
        The UUID of a real card; ``None`` hides all cards, as on CPUs and simulated devices.
    base
        The agent's environment variables.
    """
    variables = dict(base)
    paths = [str(import_dir)]
    if own_interpreter:
        for name in _OF_OUR_PYTHON:
            variables.pop(name, None)
        variables["PYTHONNOUSERSITE"] = "1"
    else:
        # relative entries are meant from the agent's folder, and the stage host has another
        paths += [str(Path(path).absolute()) for path in base.get("PYTHONPATH", "").split(os.pathsep) if path]
    variables |= dict.fromkeys(THREAD_VARIABLES, str(max(1, spec.threads)))
    variables["PYTHONPATH"] = os.pathsep.join(paths)
    variables["PYTHONUNBUFFERED"] = "1"  # what user code printed must be in the log when it crashes
    variables["CUDA_VISIBLE_DEVICES"] = card or ""
    variables[LIFELINE_VARIABLE] = str(lifeline)
    if spec.folder is not None:
        variables["TMPDIR"] = spec.folder  # what a killed process leaves there goes with its job
    return variables


def link_package(import_dir: Path) -> None:
    """Make `import_dir` a folder with nothing but a link to this package, so that it can be imported without our site-packages."""
    import_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    package = Path(dgpunet_dask.__file__).resolve().parent
    fresh = import_dir / f".{os.getpid()}"
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(package, target_is_directory=True)
    fresh.replace(import_dir / package.name)
