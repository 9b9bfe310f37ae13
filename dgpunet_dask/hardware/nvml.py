"""Facts about NVIDIA cards, read through NVML: the only module that imports ``pynvml``.

Whatever a card or driver does not report is ``None``. A machine without driver or card gives an empty list: it is a CPU host.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

log = logging.getLogger(__name__)

MIB: Final = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Card:
    """What NVML says of one card. Memory in MiB, power in watts, temperature in °C; ``None`` = not reported."""

    index: int
    model: str | None = None
    uuid: str | None = None
    vram_mib: int | None = None
    used_mib: int | None = None
    capability: tuple[int, int] | None = None
    driver: tuple[int, ...] | None = None
    utilisation: int | None = None
    power_w: float | None = None
    temperature_c: int | None = None
    process_mib: tuple[tuple[int, int | None], ...] | None = None
    display: bool | None = None


class CardUse(NamedTuple):
    """What is used of a card, in MiB, and by which processes: their ids and MiB. ``None`` = not reported."""

    used_mib: int | None
    process_mib: tuple[tuple[int, int | None], ...] | None


def probe_cards() -> list[Card]:
    """Return the cards of this machine, in NVML's order; empty without a driver.

    A card that is split into MIG instances is reported whole: instances are not supported yet, and a warning names the card.
    """
    try:
        import pynvml
    except ImportError:
        return []
    with _session(pynvml) as open_:
        if not open_:
            return []
        driver = _driver(pynvml)
        count = _ask(pynvml, pynvml.nvmlDeviceGetCount) or 0
        return [card for index in range(count) if (card := _probe(pynvml, index, driver)) is not None]


def driver_versions() -> tuple[tuple[int, ...] | None, tuple[int, int] | None]:
    """Return the driver's version, and the newest CUDA that it runs, such as (12, 4); ``None`` each where there is none."""
    try:
        import pynvml
    except ImportError:
        return None, None
    with _session(pynvml) as open_:
        return (_driver(pynvml), _cuda(pynvml)) if open_ else (None, None)


@contextlib.contextmanager
def watching() -> Iterator[Callable[[str], CardUse | None]]:
    """Give a function that tells the use of a card by its UUID or index, ``None`` where the card cannot be asked.

    The session with the driver stays open meanwhile: opening one can take a second where no other program holds it.
    """
    try:
        import pynvml
    except ImportError:
        yield lambda _: None
        return
    with _session(pynvml) as open_:

        def ask(uuid: str) -> CardUse | None:
            handle = _handle(pynvml, uuid) if open_ else None
            return None if handle is None else CardUse(_memory(pynvml, handle)[1], _process_mib(pynvml, handle))

        yield ask


def _handle(pynvml: Any, uuid: str) -> Any:
    if uuid.isdigit():
        return _ask(pynvml, pynvml.nvmlDeviceGetHandleByIndex, int(uuid))
    return _ask(pynvml, pynvml.nvmlDeviceGetHandleByUUID, uuid)


@contextlib.contextmanager
def _session(pynvml: Any) -> Iterator[bool]:
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        log.debug("NVML is not available: %s", error)
        yield False
        return
    try:
        yield True
    finally:
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


def _ask(pynvml: Any, question: Callable[..., Any], *args: Any) -> Any:
    """Return NVML's answer, ``None`` where the card or driver does not report it."""
    try:
        return question(*args)
    except (pynvml.NVMLError, UnicodeDecodeError):
        return None


def _driver(pynvml: Any) -> tuple[int, ...] | None:
    text = _text(_ask(pynvml, pynvml.nvmlSystemGetDriverVersion))
    parts = text.split(".") if text else []
    return tuple(map(int, parts)) if parts and all(p.isdigit() for p in parts) else None


def _cuda(pynvml: Any) -> tuple[int, int] | None:
    found = _ask(pynvml, pynvml.nvmlSystemGetCudaDriverVersion_v2)
    return None if found is None else (found // 1000, found % 1000 // 10)


def _text(raw: Any) -> str | None:
    """Return NVML's text: older bindings give bytes."""
    if raw is None:
        return None
    return raw.decode(errors="replace") if isinstance(raw, bytes) else str(raw)


def _probe(pynvml: Any, index: int, driver: tuple[int, ...] | None) -> Card | None:
    handle = _ask(pynvml, pynvml.nvmlDeviceGetHandleByIndex, index)
    if handle is None:
        log.warning("card %d cannot be opened and is left out; `nvidia-smi` may say why", index)
        return None
    _warn_of_mig(pynvml, handle, index)

    def ask(question: Callable[..., Any], *args: Any) -> Any:
        return _ask(pynvml, question, handle, *args)

    total_mib, used_mib = _memory(pynvml, handle)
    rates = ask(pynvml.nvmlDeviceGetUtilizationRates)
    milliwatts = ask(pynvml.nvmlDeviceGetPowerUsage)
    return Card(
        index=index,
        model=_text(ask(pynvml.nvmlDeviceGetName)),
        uuid=_text(ask(pynvml.nvmlDeviceGetUUID)),
        vram_mib=total_mib,
        used_mib=used_mib,
        capability=_pair(ask(pynvml.nvmlDeviceGetCudaComputeCapability)),
        driver=driver,
        utilisation=rates.gpu if rates else None,
        power_w=milliwatts / 1000 if milliwatts is not None else None,
        temperature_c=ask(pynvml.nvmlDeviceGetTemperature, pynvml.NVML_TEMPERATURE_GPU),
        process_mib=_process_mib(pynvml, handle),
        display=_display(ask(pynvml.nvmlDeviceGetDisplayMode), ask(pynvml.nvmlDeviceGetDisplayActive)),
    )


def _memory(pynvml: Any, handle: Any) -> tuple[int | None, int | None]:
    """Return total and used MiB. What driver and firmware keep for themselves counts as used by nobody, where the driver tells it apart."""
    memory = _ask(pynvml, pynvml.nvmlDeviceGetMemoryInfo, handle, pynvml.nvmlMemory_v2)
    if memory is None:
        memory = _ask(pynvml, pynvml.nvmlDeviceGetMemoryInfo, handle)
    return (None, None) if memory is None else (memory.total // MIB, memory.used // MIB)


def _display(connected: int | None, active: int | None) -> bool | None:
    """Whether a display hangs on the card, or a desktop draws on it."""
    return None if connected is None and active is None else bool(connected or active)


def _warn_of_mig(pynvml: Any, handle: Any, index: int) -> None:
    mode = _ask(pynvml, pynvml.nvmlDeviceGetMigMode, handle)
    if mode and mode[0]:
        log.warning("card %d is split into MIG instances, which are not supported: it is taken as a whole card", index)


def _pair(raw: Any) -> tuple[int, int] | None:
    return (int(raw[0]), int(raw[1])) if raw else None


def _process_mib(pynvml: Any, handle: Any) -> tuple[tuple[int, int | None], ...] | None:
    """Return (pid, MiB) of each process that computes or draws; MiB is ``None`` where the driver hides it (as under Windows' WDDM)."""
    computing = _ask(pynvml, pynvml.nvmlDeviceGetComputeRunningProcesses, handle)
    drawing = _ask(pynvml, pynvml.nvmlDeviceGetGraphicsRunningProcesses, handle)
    if computing is None and drawing is None:
        return None
    return _by_pid([(p.pid, p.usedGpuMemory) for p in (*(computing or ()), *(drawing or ()))])


def _by_pid(listed: Iterable[tuple[int, int | None]]) -> tuple[tuple[int, int | None], ...]:
    """Return each process once: one that computes and draws is in both lists, each time with all that it uses."""
    found: dict[int, int | None] = {}
    for pid, used in listed:
        known = found.get(pid)
        mib = None if used is None else used // MIB
        found[pid] = mib if known is None else max(known, mib or 0)
    return tuple(sorted(found.items()))
