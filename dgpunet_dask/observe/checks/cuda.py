"""Whether driver, CUDA, torch and cards fit one another. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from dgpunet_dask.model.fleet import runs_arch
from dgpunet_dask.observe.checks.cards import card_subject
from dgpunet_dask.observe.facts import Facts, dotted
from dgpunet_dask.observe.finding import Check, Finding

#: The oldest Linux driver that runs any program built with a CUDA of this major version.
#: Source: docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html, table 1.
OLDEST_DRIVER: Final[dict[int, tuple[int, ...]]] = {11: (450, 80, 2), 12: (525, 60, 13), 13: (580,)}
#: The driver that came with a CUDA version: an older one of the same major version runs it, without compiling PTX at load.
#: Source: docs.nvidia.com/cuda/cuda-toolkit-release-notes, "CUDA Toolkit and Corresponding Driver Versions".
OWN_DRIVER: Final[dict[tuple[int, int], tuple[int, ...]]] = {
    (11, 8): (520, 61, 5),
    (12, 0): (525, 60, 13),
    (12, 1): (530, 30, 2),
    (12, 2): (535, 54, 3),
    (12, 3): (545, 23, 6),
    (12, 4): (550, 54, 14),
    (12, 5): (555, 42, 2),
    (12, 6): (560, 28, 3),
    (12, 8): (570, 26),
    (12, 9): (575, 51, 3),
    (13, 0): (580, 65, 6),
}
_TORCH: Final = "see https://pytorch.org/get-started/locally, then `pip install` the build that it names"


def torch_build(facts: Facts) -> Iterator[Finding]:
    """Whether the installed torch can use cards at all."""
    if not facts.rows("cards"):
        return
    check = Check("torch_cuda", "versions", facts.host)
    torch, cuda = facts.text("software", "torch"), facts.text("software", "torch_cuda")
    if torch is None:
        yield check.fault("torch is not installed, and there are cards", f"install it: {_TORCH}", torch=None)
    elif cuda is None:
        yield check.fault(
            f"torch {torch} is built without CUDA, so it leaves the cards alone",
            f"install a CUDA build: {_TORCH} (`pip config list` shows whether pip is bound to an index of CPU builds)",
            torch=torch, torch_cuda=None,
        )  # fmt: skip
    else:
        yield check.ok(f"torch {torch} is built with CUDA {cuda}", torch=torch, torch_cuda=cuda)


def driver_age(facts: Facts) -> Iterator[Finding]:
    """Whether the driver is new enough for torch's CUDA."""
    cuda = facts.version("software", "torch_cuda")
    found = next((version for card in facts.rows("cards") if (version := card.version("driver"))), None)
    if cuda is None or found is None:
        return
    check = Check("driver_version", "versions", facts.host)
    oldest, own = OLDEST_DRIVER.get(cuda[0]), OWN_DRIVER.get((cuda[0], cuda[1] if len(cuda) > 1 else 0))
    told = {"driver": dotted(found), "torch_cuda": dotted(cuda), "oldest": dotted(oldest)}
    cure = f"upgrade NVIDIA's driver to {dotted(own or oldest)} or newer, or install a torch built with an older CUDA"
    if oldest is not None and found < oldest:
        yield check.fault(f"driver {dotted(found)} is too old for the CUDA {dotted(cuda)} of torch", cure, **told)
    elif own is not None and found < own:
        what = f"driver {dotted(found)} is older than CUDA {dotted(cuda)} of torch: it runs what was built for the card, and compiles nothing"
        yield check.warn(what, cure, **told)
    else:
        yield check.ok(f"driver {dotted(found)} is new enough for the CUDA {dotted(cuda)} of torch", **told)


def arches(facts: Facts) -> Iterator[Finding]:
    """Whether torch has code for each card."""
    built = facts.texts("software", "torch_arches")
    if not built:
        return
    for card in facts.rows("cards"):
        capability = card.version("capability")
        if capability is None:
            continue
        check = Check("torch_arch", "versions", card_subject(card))
        wanted = "sm_" + "".join(map(str, capability))
        told = {"model": card.text("model"), "wanted": wanted, "built_for": list(built)}
        if any(runs_arch(capability, arch) for arch in built):
            yield check.ok(f"torch has code for {wanted}", **told)
        else:
            what = f"torch has no code for {card.text('model') or 'this card'} ({wanted}); it was built for {', '.join(built)}"
            side = "a newer" if capability > _newest(built) else "an older"
            yield check.fault(what, f"install {side} torch with code for {wanted}: {_TORCH}", **told)


def _newest(built: tuple[str, ...]) -> tuple[int, ...]:
    """Return the newest capability in names such as ``sm_120``."""
    digits = ["".join(c for c in arch.partition("_")[2] if c.isdigit()) for arch in built]
    return max(((int(d[:-1]), int(d[-1])) for d in digits if len(d) > 1), default=(0, 0))
