"""What NVIDIA cards tell through NVML: the only module that imports ``pynvml``.

Whatever a card or driver does not report is ``None``. A machine without driver or card gives an empty list: it is a CPU host. What else
is asked of the driver, in `card_facts` and `xid_watch`, goes through `session`.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

log = logging.getLogger(__name__)

MIB: Final = 1 << 20
#: Of NVML's error numbers, those that say more than "not reported".
NOT_FOUND: Final = 6
TIMEOUT: Final = 10
GPU_IS_LOST: Final = 15
RESET_REQUIRED: Final = 16


@dataclass(frozen=True, kw_only=True)
class Card:
    """What NVML says of one card, or of one MIG instance. Memory in MiB, power in watts, temperature in °C; ``None`` = not reported.

    Parameters
    ----------
    index
        NVML's number of the card; instances have their card's.
    process_mib
        Process id and MiB of each process that computes or draws.
    present, problem
        ``False`` for a card that fell off the bus or cannot be opened, and why in the driver's words.
    mig_of
        UUID of the card that an instance is a part of.
    whole_mib
        Memory of that card.
    """

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
    present: bool = True
    problem: str | None = None
    mig_of: str | None = None
    whole_mib: int | None = None


class CardUse(NamedTuple):
    """What is used of a card, in MiB, and by which processes: their ids and MiB. ``None`` = not reported."""

    used_mib: int | None
    process_mib: tuple[tuple[int, int | None], ...] | None


class CardState(NamedTuple):
    """Whether a card is there.

    Parameters
    ----------
    present
        ``None`` where no driver can be asked.
    lost
        The driver knows the card, and it fell off the bus or must be reset.
    why
        The driver's words where it is not present.
    """

    present: bool | None
    lost: bool = False
    why: str | None = None


class Nvml:
    """The driver, while a session with it is open.

    Parameters
    ----------
    binding
        The module ``pynvml``.
    """

    def __init__(self, binding: Any) -> None:
        self.binding = binding

    def answer(self, question: str, *args: Any) -> tuple[Any, int | None]:
        """Return NVML's answer and ``None``, or ``None`` and the number of its error. `question` names a function of the bindings."""
        function = getattr(self.binding, question, None)
        if function is None:  # bindings of another age
            return None, NOT_FOUND
        try:
            return function(*args), None
        except self.binding.NVMLError as error:
            return None, int(error.value)
        except UnicodeDecodeError:
            return None, NOT_FOUND

    def ask(self, question: str, *args: Any) -> Any:
        """Return NVML's answer, ``None`` where the card or driver does not report it."""
        return self.answer(question, *args)[0]

    def text(self, question: str, *args: Any) -> str | None:
        """Return NVML's text: older bindings give bytes."""
        raw = self.ask(question, *args)
        if raw is None:
            return None
        return raw.decode(errors="replace") if isinstance(raw, bytes) else str(raw)

    def words(self, error: int) -> str:
        """Return an error in the driver's words."""
        return str(self.binding.NVMLError(error))

    def handle(self, uuid: str) -> tuple[Any, int | None]:
        """Return the handle of a card or instance by its UUID, or of a card by its index, or the error's number."""
        if uuid.isdigit():
            return self.answer("nvmlDeviceGetHandleByIndex", int(uuid))
        return self.answer("nvmlDeviceGetHandleByUUID", uuid)

    def lost(self, handle: Any) -> int | None:
        """Return the error's number where a card fell off the bus or must be reset, ``None`` where it answers."""
        error = self.answer("nvmlDeviceGetMemoryInfo", handle)[1]
        return error if error in {GPU_IS_LOST, RESET_REQUIRED} else None

    def handles(self) -> Iterator[tuple[int, Any, int | None]]:
        """Yield index and handle of each card, or the error's number."""
        for index in range(self.ask("nvmlDeviceGetCount") or 0):
            yield (index, *self.answer("nvmlDeviceGetHandleByIndex", index))


class Watching:
    """Asks about single cards while a session is open; called, it tells the use of a card by its UUID or index.

    Parameters
    ----------
    nvml
        ``None`` where there is no driver.
    """

    def __init__(self, nvml: Nvml | None) -> None:
        self.nvml = nvml

    def __call__(self, uuid: str) -> CardUse | None:
        """Return what is used of a card, ``None`` where the card cannot be asked."""
        handle = None if self.nvml is None else self.nvml.handle(uuid)[0]
        return None if self.nvml is None or handle is None else CardUse(_memory(self.nvml, handle)[1], _process_mib(self.nvml, handle))

    def state(self, uuid: str) -> CardState:
        """Return whether a card is there."""
        if self.nvml is None:
            return CardState(None, why="there is no driver to ask")
        handle, error = self.nvml.handle(uuid)
        if error is None:
            error = self.nvml.lost(handle)
        if error in {GPU_IS_LOST, RESET_REQUIRED}:
            return CardState(present=False, lost=True, why=self.nvml.words(error))
        return CardState(present=handle is not None, why=None if handle is not None or error is None else self.nvml.words(error))


@contextlib.contextmanager
def session() -> Iterator[Nvml | None]:
    """Open a session with the driver, ``None`` where there is none. Opening one can take a second where no other program holds it."""
    nvml, why = _opened()
    if nvml is None:
        log.debug("NVML is not available: %s", why)
    try:
        yield nvml
    finally:
        if nvml is not None:
            nvml.ask("nvmlShutdown")


def probe_cards() -> list[Card]:
    """Return the cards of this machine, in NVML's order; empty without a driver.

    A card that is split into MIG instances is left out, and its instances stand in its place. A card that fell off the bus is told in the
    log and left out: `card_facts` lists it.
    """
    with session() as nvml:
        found = [] if nvml is None else [card for card, _, _ in each_card(nvml)]
    for card in found:
        if not card.present:
            log.warning("card %d is left out: %s; restart the machine, then look for Xid in `dmesg`", card.index, card.problem)
    return [card for card in found if card.present]


def card_state(uuid: str) -> CardState:
    """Return whether a card is there, by its UUID or index."""
    with watching() as cards:
        return cards.state(uuid)


@contextlib.contextmanager
def watching() -> Iterator[Watching]:
    """Give something that tells use and state of cards. The session with the driver stays open meanwhile."""
    with session() as nvml:
        yield Watching(nvml)


def driver_versions() -> tuple[tuple[int, ...] | None, tuple[int, int] | None]:
    """Return the driver's version, and the newest CUDA that it runs, such as (12, 4); ``None`` each where there is none."""
    with session() as nvml:
        return (None, None) if nvml is None else (_driver(nvml), cuda_version(nvml))


def driver_problem() -> str | None:
    """Return why the driver cannot be asked, in its own words; ``None`` if it answers."""
    nvml, why = _opened()
    if nvml is not None:
        nvml.ask("nvmlShutdown")
    return why


def each_card(nvml: Nvml) -> Iterator[tuple[Card, Any, Any]]:
    """Yield each card or MIG instance, its own handle, and that of the whole card; a card that fell off has no handles."""
    driver = _driver(nvml)
    for index, handle, shut in nvml.handles():
        card = Card(index=index, driver=driver) if handle is None else _probe(nvml, handle, index, driver)
        error = nvml.lost(handle) if shut is None else shut
        if error is None:
            yield from _parts(nvml, card, handle)
        else:
            yield replace(card, present=False, problem=nvml.words(error)), None, None


def cuda_version(nvml: Nvml) -> tuple[int, int] | None:
    """Return the newest CUDA that the driver runs."""
    found = nvml.ask("nvmlSystemGetCudaDriverVersion_v2")
    return None if found is None else (found // 1000, found % 1000 // 10)


def _opened() -> tuple[Nvml | None, str | None]:
    try:
        import pynvml
    except ImportError:
        return None, "the Python package nvidia-ml-py is not installed"
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return None, str(error)
    return Nvml(pynvml), None


def _driver(nvml: Nvml) -> tuple[int, ...] | None:
    text = nvml.text("nvmlSystemGetDriverVersion")
    parts = text.split(".") if text else []
    return tuple(map(int, parts)) if parts and all(p.isdigit() for p in parts) else None


def _parts(nvml: Nvml, card: Card, handle: Any) -> Iterator[tuple[Card, Any, Any]]:
    """Yield the card, or its MIG instances where it is split."""
    mode = nvml.ask("nvmlDeviceGetMigMode", handle)
    if not mode or not mode[0]:
        yield card, handle, handle
        return
    found = [part for n in range(nvml.ask("nvmlDeviceGetMaxMigDeviceCount", handle) or 0) if (part := _instance(nvml, card, handle, n)) is not None]
    if not found:
        log.warning("card %d is in MIG mode and has no instance with a UUID: nothing can run on it; `nvidia-smi mig -lgi` lists them", card.index)
    for instance, own in found:
        yield instance, own, handle


def _instance(nvml: Nvml, card: Card, handle: Any, number: int) -> tuple[Card, Any] | None:
    """Return a MIG instance and its handle, ``None`` where there is none of that number. What only the whole card has is not reported."""
    own = nvml.ask("nvmlDeviceGetMigDeviceHandleByIndex", handle, number)
    uuid = None if own is None else nvml.text("nvmlDeviceGetUUID", own)
    if uuid is None:
        return None
    total_mib, used_mib = _memory(nvml, own)
    instance = replace(
        card,
        model=nvml.text("nvmlDeviceGetName", own) or card.model,
        uuid=uuid,
        vram_mib=total_mib,
        used_mib=used_mib,
        capability=_pair(nvml.ask("nvmlDeviceGetCudaComputeCapability", own)) or card.capability,
        utilisation=None,
        power_w=None,
        process_mib=_process_mib(nvml, own),
        mig_of=card.uuid,
        whole_mib=card.vram_mib,
    )
    return instance, own


def _probe(nvml: Nvml, handle: Any, index: int, driver: tuple[int, ...] | None) -> Card:
    total_mib, used_mib = _memory(nvml, handle)
    rates = nvml.ask("nvmlDeviceGetUtilizationRates", handle)
    milliwatts = nvml.ask("nvmlDeviceGetPowerUsage", handle)
    return Card(
        index=index,
        model=nvml.text("nvmlDeviceGetName", handle),
        uuid=nvml.text("nvmlDeviceGetUUID", handle),
        vram_mib=total_mib,
        used_mib=used_mib,
        capability=_pair(nvml.ask("nvmlDeviceGetCudaComputeCapability", handle)),
        driver=driver,
        utilisation=rates.gpu if rates else None,
        power_w=milliwatts / 1000 if milliwatts is not None else None,
        temperature_c=nvml.ask("nvmlDeviceGetTemperature", handle, nvml.binding.NVML_TEMPERATURE_GPU),
        process_mib=_process_mib(nvml, handle),
        display=_display(nvml, handle),
    )


def _display(nvml: Nvml, handle: Any) -> bool | None:
    """Whether a desktop draws on the card. The display *mode* says less: an H200 without any connector reports it as enabled."""
    active = nvml.ask("nvmlDeviceGetDisplayActive", handle)
    known = nvml.ask("nvmlDeviceGetDisplayMode", handle) if active is None else active
    return None if known is None else bool(known)


def _memory(nvml: Nvml, handle: Any) -> tuple[int | None, int | None]:
    """Return total and used MiB. What driver and firmware keep for themselves counts as used by nobody, where the driver tells it apart."""
    memory = nvml.ask("nvmlDeviceGetMemoryInfo", handle, getattr(nvml.binding, "nvmlMemory_v2", None))
    if memory is None:
        memory = nvml.ask("nvmlDeviceGetMemoryInfo", handle)
    return (None, None) if memory is None else (memory.total // MIB, memory.used // MIB)


def _pair(raw: Any) -> tuple[int, int] | None:
    return (int(raw[0]), int(raw[1])) if raw else None


def _process_mib(nvml: Nvml, handle: Any) -> tuple[tuple[int, int | None], ...] | None:
    """Return (pid, MiB) of each process that computes or draws; MiB is ``None`` where the driver hides it (as under Windows' WDDM)."""
    computing = nvml.ask("nvmlDeviceGetComputeRunningProcesses", handle)
    drawing = nvml.ask("nvmlDeviceGetGraphicsRunningProcesses", handle)
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
