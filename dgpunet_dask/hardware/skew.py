"""How the software of two hosts differs, in three levels: alike, tolerable, or not to be mixed. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from dgpunet_dask.hardware.nvml import Card
from dgpunet_dask.model.fleet import runs_arch

Level = Literal["ok", "warn", "refuse"]

_SAME: Final = "install the same release on both hosts: `pip install -c constraints.txt dgpunet-dask`, then restart the service"
_PYTHON: Final = "make the host's environment anew with the head's Python, then install dgpunet-dask there"
_LEVELS: Final[tuple[Level, ...]] = ("refuse", "warn", "ok")


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What a difference in one package means.

    Parameters
    ----------
    width
        How many leading numbers must be equal; ``None`` all of them, 0 none.
    refused, warned
        Why the hosts cannot work together then, and what may happen where only the rest differs.
    """

    width: int | None
    refused: str
    warned: str
    cure: str = _SAME


#: What is compared, in this order. The driver and its CUDA may differ: each host's own must only suit its own torch.
RULES: Final[Mapping[str, Rule]] = {
    "dgpunet_dask": Rule(width=2, refused="another minor version may speak another protocol", warned="fixes may be missing on one side"),
    "distributed": Rule(width=None, refused="scheduler and workers must be of one release, for they trade pickled state", warned=""),
    "dask": Rule(width=None, refused="graphs are pickled by one release and unpickled by the other", warned=""),
    "python": Rule(width=2, refused="bytecode and pickles differ between minor versions", warned="fixes may be missing on one side", cure=_PYTHON),
    "dask_cuda": Rule(width=0, refused="", warned="the workers of the cards may behave differently"),
    "torch": Rule(width=0, refused="", warned="results may differ in the last bits, and models of one release may not load in the other"),
    "numpy": Rule(width=0, refused="", warned="arrays of one may not unpickle in the other"),
    "openvino": Rule(width=0, refused="", warned="results may differ in the last bits"),
    "faiss": Rule(width=0, refused="", warned="an index of the newer may not open in the older"),
}


@dataclass(frozen=True, kw_only=True)
class Skew:
    """One thing in which two hosts' software differs, or is alike.

    Parameters
    ----------
    level
        ``refuse``: they cannot work together; ``warn``: they may, with a doubt; ``ok``: no difference that matters.
    what
        The package, or ``packages`` for the rest of them together.
    ours, theirs
        Both versions; ``None`` = not installed, or not reported.
    why
        What the difference means.
    cure
        ``None`` where nothing needs one.
    """

    level: Level
    what: str
    ours: str | None
    theirs: str | None
    why: str
    cure: str | None = None

    def __str__(self) -> str:
        name = self.what.replace("_", "-")
        both = f"{name} {self.ours or 'not reported'} here, {self.theirs or 'not reported'} there"
        return "; ".join(filter(None, [f"{both}: {self.why}", self.cure]))


def compare(
    mine: Mapping[str, str | None], theirs: Mapping[str, str | None], my_packages: Sequence[str], their_packages: Sequence[str]
) -> list[Skew]:
    """Return the differences of two hosts, the worst first, otherwise in the order of `RULES`.

    Parameters
    ----------
    mine, theirs
        Versions by the names of `RULES`, and ``lock_hash``.
    my_packages, their_packages
        ``name==version`` of all that is installed.
    """
    found = [_one(name, rule, mine.get(name), theirs.get(name)) for name, rule in RULES.items() if mine.get(name) or theirs.get(name)]
    same_lock = mine.get("lock_hash") == theirs.get("lock_hash")
    found += [] if same_lock else _packages(_by_name(my_packages), _by_name(their_packages))
    return sorted(found, key=lambda skew: _LEVELS.index(skew.level))


def arch_skew(cards: Sequence[Card], arches: Sequence[str] | None) -> list[Skew]:
    """Return a refusal for each card that the installed torch has no code for; work on the others goes on.

    Parameters
    ----------
    arches
        What torch has code for: empty for a torch without CUDA, ``None`` where it is not known, which refuses nothing.
    """
    return [] if arches is None else [skew for card in cards if (skew := _card(card, arches)) is not None]


def _card(card: Card, arches: Sequence[str]) -> Skew | None:
    if card.capability is None or any(runs_arch(card.capability, arch) for arch in arches):
        return None
    sm = f"sm_{card.capability[0]}{card.capability[1]}"
    name = card.model or f"card {card.index}"
    if not arches:
        why = f"torch is built without CUDA, so {name} ({sm}) cannot run it"
        cure = "install a torch with CUDA: `pip install torch` takes one on Linux; pytorch.org names the index of each CUDA version"
    else:
        why = f"torch has no code for {name} ({sm}): it is built for {', '.join(arches)}"
        cure = f"install a newer torch, or one built for a newer CUDA, that lists {sm} in `torch.cuda.get_arch_list()`"
    return Skew(level="refuse", what="torch_arches", ours=" ".join(arches) or "none", theirs=sm, why=why, cure=cure)


def _one(name: str, rule: Rule, ours: str | None, theirs: str | None) -> Skew:
    if ours is None or theirs is None:
        return Skew(level="warn", what=name, ours=ours, theirs=theirs, why="one side has none, or does not report it", cure=rule.cure)
    if ours == theirs:
        return Skew(level="ok", what=name, ours=ours, theirs=theirs, why="the same")
    if _release(ours) == _release(theirs):
        return Skew(level="ok", what=name, ours=ours, theirs=theirs, why="one release, built for different hardware")
    if _head(ours, rule.width) != _head(theirs, rule.width):
        return Skew(level="refuse", what=name, ours=ours, theirs=theirs, why=rule.refused, cure=rule.cure)
    return Skew(level="warn", what=name, ours=ours, theirs=theirs, why=rule.warned, cure=rule.cure)


def _packages(mine: Mapping[str, str], theirs: Mapping[str, str]) -> Iterator[Skew]:
    """Yield the other packages' differences: those that both have in one line, those that one has in another."""
    told = {name.replace("_", "-") for name in RULES} | {"faiss-cpu", "faiss-gpu"}
    both = [n for n in sorted(mine.keys() & theirs.keys() - told) if _release(mine[n]) != _release(theirs[n])]
    if both:
        ours, others = (", ".join(f"{n} {side[n]}" for n in both) for side in (mine, theirs))
        why = f"{len(both)} more package(s) that dgpunet-dask needs differ"
        yield Skew(level="warn", what="packages", ours=ours, theirs=others, why=why, cure=_SAME)
    mine_only, theirs_only = (", ".join(sorted(a.keys() - b.keys() - told)) for a, b in ((mine, theirs), (theirs, mine)))
    if mine and theirs and (mine_only or theirs_only):
        why = "each has packages of its own, as hosts with other cards do"
        yield Skew(level="ok", what="packages", ours=mine_only or "none more", theirs=theirs_only or "none more", why=why)


def _by_name(packages: Sequence[str]) -> dict[str, str]:
    return {name: version for name, _, version in (line.partition("==") for line in packages)}


def _release(version: str) -> str:
    """Return a version without its local part: ``2.13.0`` of ``2.13.0+cu130``."""
    return version.partition("+")[0]


def _head(version: str, width: int | None) -> list[str]:
    return version.split(".")[:width]
