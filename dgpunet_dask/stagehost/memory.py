"""The memory that torch takes of this process's card: capped at the charge, and measured. Standard library only.

Torch is never imported for this, since that costs seconds: a stage that does not use it takes no notice.
"""

from __future__ import annotations

import importlib.util
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, Final

from dgpunet_dask.stagehost.oom import MIB, Shortage
from dgpunet_dask.stagehost.spec import StageCallSpec

#: What CUDA's context and torch's kernels take beside any tensor. An estimate; the cap of a stage is its charge, so it errs to the high side.
CONTEXT_MIB: Final = 600


def cap_torch(spec: StageCallSpec) -> None:
    """Keep torch within the stage's charge, so that an overrun fails this process and never its neighbour on the card.

    The charge holds the process's context too, of which torch's allocator knows nothing; hence its cap is the charge less the context.
    """
    torch = _torch(spec)
    if torch is None or spec.vram_mib is None:
        return
    device = spec.torch_device
    torch.cuda.init()
    total = torch.cuda.get_device_properties(device).total_memory
    allowed = spec.vram_mib * MIB - _context_bytes(torch, device)
    torch.cuda.set_per_process_memory_fraction(min(1.0, max(0.0, allowed / total)), device)


def cap_torch_once_imported(spec: StageCallSpec) -> None:
    """See to it that torch is capped before it can allocate anything: now, or as soon as the stage has imported it."""
    if "torch" in sys.modules:
        cap_torch(spec)
    elif spec.vram_mib is not None and spec.torch_device.startswith("cuda"):
        sys.meta_path.insert(0, _AfterImport("torch", lambda: cap_torch(spec)))


def peak_mib(spec: StageCallSpec) -> int | None:
    """Return the peak since the last call of this, with the context; ``None`` where torch uses no card here."""
    torch = _used_torch(spec)
    if torch is None:
        return None
    peak = torch.cuda.max_memory_allocated(spec.torch_device)
    torch.cuda.reset_peak_memory_stats(spec.torch_device)
    return _mib(peak + _context_bytes(torch, spec.torch_device))


def held_mib(spec: StageCallSpec) -> int | None:
    """Return what this process holds of its card now, with the context; ``None`` where torch uses no card here."""
    torch = _used_torch(spec)
    if torch is None:
        return None
    return _mib(torch.cuda.memory_reserved(spec.torch_device) + _context_bytes(torch, spec.torch_device))


def trim(spec: StageCallSpec) -> None:
    """Give what torch keeps for later back to the card, where others may have been promised it."""
    torch = _used_torch(spec)
    if torch is not None:
        torch.cuda.empty_cache()


def measured(spec: StageCallSpec) -> Shortage:
    """Return what can be said of the card and this process after an allocation has failed."""
    torch = _used_torch(spec)
    if torch is None:
        return Shortage()
    free, total = torch.cuda.mem_get_info(spec.torch_device)
    reserved = torch.cuda.memory_reserved(spec.torch_device)
    return Shortage(total=total, free=free, reserved=reserved, in_use=reserved + _context_bytes(torch, spec.torch_device))


def _torch(spec: StageCallSpec) -> Any | None:
    """Return torch where it is loaded and can use the card of `spec`."""
    torch: Any = sys.modules.get("torch")
    if torch is None or not spec.torch_device.startswith("cuda") or not torch.cuda.is_available():
        return None
    return torch


def _used_torch(spec: StageCallSpec) -> Any | None:
    torch = _torch(spec)
    return torch if torch is not None and torch.cuda.is_initialized() else None


def _context_bytes(torch: Any, device: str) -> int:
    """Return what the process takes beside torch's allocator: never more than is in use, for all processes, beside it."""
    free, total = torch.cuda.mem_get_info(device)
    return max(0, min(CONTEXT_MIB * MIB, int(total - free - torch.cuda.memory_reserved(device))))


def _mib(size: int) -> int:
    return -(-size // MIB)


class _AfterImport(MetaPathFinder):
    """Calls `then` once the module `name` has been imported."""

    def __init__(self, name: str, then: Callable[[], None]) -> None:
        self.name = name
        self.then = then

    def find_spec(self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Return where the others find the module, with a loader that reports its end."""
        if fullname != self.name:
            return None
        sys.meta_path.remove(self)
        found = importlib.util.find_spec(fullname)
        if found is not None and found.loader is not None:
            load = found.loader.exec_module
            setattr(found.loader, "exec_module", lambda module: self._load(load, module))  # noqa: B010  # a method of one instance
        return found

    def _load(self, load: Callable[[ModuleType], None], module: ModuleType) -> None:
        load(module)
        try:
            self.then()
        except Exception:  # the import is in order; what is wrong with the card shows when it is used
            traceback.print_exc()
