"""Out of GPU memory: recognised, and whose fault it was. Pure. Standard library only.

A stage may be charged less than its card holds, and its process is capped at the charge. So there are two causes, which want different
cures: it reached its charge (`StageOutOfMemory`: ask for more), or the card had less free than the charge had promised, because others
took it (`ForeignMemory`: asking for more would not help).

What a failed allocation says differs by library and version; the numbers are read from the text, since by the time the error is caught
the process has freed memory, and those that the text lacks are filled in from measurements.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final, Literal

from dgpunet_dask.errors import DgpunetError, ForeignMemory, StageOutOfMemory
from dgpunet_dask.units import Mib

MIB: Final = 1 << 20
Cause = Literal["own", "foreign"]

#: Libraries whose ``OutOfMemoryError`` (or a subclass) is meant.
_LIBRARIES: Final = ("torch", "cupy", "cupy_backends", "numba", "rmm")
_TEXTS: Final = re.compile(
    r"(CUDA|HIP|XPU) out of memory|(CUDA|HIP) error: out of memory|CUDA failure 2: out of memory|CUDA_ERROR_OUT_OF_MEMORY"
    r"|cudaErrorMemoryAllocation|CUBLAS_STATUS_ALLOC_FAILED|CUDNN_STATUS_ALLOC_FAILED|std::bad_alloc: out_of_memory"
    r"|BFCArena::AllocateRawInternal.*Failed to allocate|RESOURCE_EXHAUSTED: Out of memory|OOM when allocating tensor",
    re.DOTALL,
)
_UNITS: Final = {"bytes": 1, "KiB": 1 << 10, "MiB": MIB, "GiB": 1 << 30, "TiB": 1 << 40}
_SIZE: Final = r"([\d,]+(?:\.\d+)?) (bytes|KiB|MiB|GiB|TiB)"


@dataclass(frozen=True)
class Shortage:
    """What is known of one failed allocation, in bytes; ``None`` where it is not.

    Parameters
    ----------
    tried
        What was asked for.
    total, free
        Of the card.
    reserved
        What the allocator of this process held, used or not.
    in_use
        What this process took of the card, with its context.
    allowed
        The cap of the allocator.
    """

    tried: int | None = None
    total: int | None = None
    free: int | None = None
    reserved: int | None = None
    in_use: int | None = None
    allowed: int | None = None

    def filled(self, measured: Shortage) -> Shortage:
        """Return this with what it lacks from `measured`."""
        lacking = {name: value for name, value in vars(measured).items() if getattr(self, name) is None}
        return replace(self, **lacking)

    @property
    def use(self) -> int | None:
        """What this process held."""
        return self.reserved if self.in_use is None else self.in_use

    @property
    def need(self) -> int | None:
        """What this process would have held with the allocation."""
        return None if self.use is None else self.use + (self.tried or 0)


#: Where each number stands: PyTorch since 2.1, PyTorch before (which called the free part of its cache "cached" before 1.5), CuPy.
_TRIED: Final = (rf"[Tt]ried to allocate {_SIZE}", rf"[Oo]ut of memory (?:allocating|to allocate) {_SIZE}", r"requested buffer of size (\d+)()")
_TOTAL: Final = (rf"total capaci?ty of {_SIZE}", rf"{_SIZE} total capacity")
_FREE: Final = (rf"of which {_SIZE} is free", rf"; {_SIZE} free")
_IN_USE: Final = (rf"this process has {_SIZE} memory in use",)
_ALLOWED: Final = (rf"{_SIZE} allowed", rf"limit set to:? {_SIZE}")
_RESERVED: Final = (rf"{_SIZE} reserved in total", rf"allocated so far: {_SIZE}", rf"\(total {_SIZE}")
_ALLOCATED: Final = (rf"allocated memory {_SIZE} is allocated", rf"{_SIZE} already allocated")
_CACHED: Final = (rf"{_SIZE} is reserved by PyTorch but unallocated", rf"{_SIZE} cached")


def oom_in(error: BaseException) -> BaseException | None:
    """Return the out-of-memory that `error` is, or that it was raised from; ``None`` where it is something else."""
    return next((e for e in _causes(error) if _is_oom(e)), None)


def parse_shortage(text: str) -> Shortage:
    """Return the numbers that an error's text gives."""
    total, in_use = _first(_TOTAL, text), _first(_IN_USE, text)
    if in_use is not None and total is not None and in_use > total:  # an underflow: the driver hides what other containers take
        in_use = None
    reserved, allocated = _first(_RESERVED, text), _first(_ALLOCATED, text)
    if reserved is None and allocated is not None:
        reserved = allocated + (_first(_CACHED, text) or 0)
    return Shortage(_first(_TRIED, text), total, _first(_FREE, text), reserved, in_use, _first(_ALLOWED, text))


def cause_of(found: Shortage, charge_mib: int | None) -> Cause:
    """Return whether the process reached its charge (`own`) or the card was filled by others (`foreign`).

    `foreign` needs evidence: the card had less free than was asked for although this process stayed within its charge. A process that
    asked for less than was free was refused by its own cap, or has torn its own memory into pieces.
    """
    tried = found.tried or 0
    if found.allowed is not None and found.reserved is not None and found.reserved + tried > found.allowed:
        return "own"
    if found.free is None or (found.tried is not None and found.free >= tried):
        return "own"
    if charge_mib is not None and (found.need is None or found.need > charge_mib * MIB):
        return "own"
    return "foreign"


def out_of_memory(found: Shortage, *, stage: str, device: str, charge_mib: int | None, why: str, traceback: str) -> DgpunetError:
    """Return the error for a failed allocation of `stage` on `device`, where it was charged `charge_mib`."""
    charge = _text(charge_mib)
    common = {"stage": stage, "device": device, "charge": charge, "charge_mib": charge_mib, "attempts": 1, "why": why, "traceback": traceback}
    if cause_of(found, charge_mib) == "foreign":
        return ForeignMemory(free=_text(_mib(found.free)), **common)
    peak_mib = _mib(found.need)
    peak = f"at least {charge}" if peak_mib is None else _text(peak_mib)
    return StageOutOfMemory(peak=peak, peak_mib=peak_mib, cards=device, **common)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield `error` and all that it was explicitly raised from, and the members of groups."""
    todo, seen = [error], set[int]()
    while todo:
        found = todo.pop(0)
        if id(found) in seen:
            continue
        seen.add(id(found))
        yield found
        todo += [found.__cause__] if found.__cause__ is not None else []
        todo += found.exceptions if isinstance(found, BaseExceptionGroup) else []


def _is_oom(error: BaseException) -> bool:
    kinds = ((kind.__module__.partition(".")[0], kind.__name__) for kind in type(error).__mro__)
    if any(name == "OutOfMemoryError" and library in _LIBRARIES for library, name in kinds):
        return True
    try:
        return not isinstance(error, DgpunetError) and _TEXTS.search(str(error)) is not None
    except Exception:  # a user's __str__ may fail
        return False


def _first(patterns: tuple[str, ...], text: str) -> int | None:
    for pattern in patterns:
        found = re.search(pattern, text)
        if found is not None:
            return round(float(found[1].replace(",", "")) * _UNITS.get(found[2], 1))
    return None


def _mib(size: int | None) -> int | None:
    return None if size is None else -(-size // MIB)


def _text(mib: int | None) -> str:
    return "an unknown amount" if mib is None else str(Mib.of(mib))
