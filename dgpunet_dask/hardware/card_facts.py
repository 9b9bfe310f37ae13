"""All that a card tells of its health: limits, bus, clocks, what slows it. `nvml.Card` is what placement needs of it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Any, Final

from dgpunet_dask.hardware.nvml import Card, Nvml, cuda_version, each_card, session

#: NVML's bits (nvmlClocksEventReason…), the same in the functions of both names.
_REASONS: Final[tuple[tuple[int, str], ...]] = (
    (0x001, "gpu_idle"), (0x002, "applications_clocks"), (0x004, "sw_power_cap"), (0x008, "hw_slowdown"), (0x010, "sync_boost"),
    (0x020, "sw_thermal"), (0x040, "hw_thermal"), (0x080, "hw_power_brake"), (0x100, "display_clocks"),
)  # fmt: skip
#: NVML's field NVML_FI_DEV_GET_GPU_RECOVERY_ACTION, and its values.
_RECOVERY_FIELD: Final = 230
_RECOVERY: Final = (
    "none", "gpu_reset", "node_reboot", "drain_p2p", "drain_and_reset", "recover_imex_domain", "bus_reset", "system_reboot",
)  # fmt: skip
#: Of NVML's clock domains: the multiprocessors', and the memory's.
_SM_CLOCK: Final = 1
_MEMORY_CLOCK: Final = 2


@dataclass(frozen=True, kw_only=True)
class Pcie:
    """A card's link: PCIe generation and number of lanes, now and at most. An idle card may lower the generation to save power."""

    generation: int | None = None
    generation_max: int | None = None
    width: int | None = None
    width_max: int | None = None


@dataclass(frozen=True, kw_only=True)
class CardFacts(Card):
    """A card with all that it tells; ``None`` = not reported, as power limits of most laptops and ECC of consumer cards.

    The serial number is never asked for. A MIG instance has neither power nor energy of its own.

    Parameters
    ----------
    cuda
        The newest CUDA that the driver runs, such as (12, 4).
    pci
        Place on the bus as in the kernel's log: ``0000:01:00``.
    power_limit_w, power_limit_default_w
        Watts: in force, and as delivered.
    sm_mhz, memory_mhz
        Clocks now, MHz.
    throttle
        What keeps the clocks down now, sorted: idling and a power cap under load are ordinary, ``thermal`` and ``power_brake`` are not.
    energy_j
        Joules since the driver was loaded.
    fan
        Per cent of the fan's range.
    ecc
        Whether the memory's errors are corrected now.
    recovery_action
        What the driver wants done: ``none``, ``gpu_reset``, ``node_reboot`` and others.
    """

    cuda: tuple[int, int] | None = None
    pci: str | None = None
    power_limit_w: float | None = None
    power_limit_default_w: float | None = None
    pcie: Pcie = Pcie()
    sm_mhz: int | None = None
    memory_mhz: int | None = None
    throttle: tuple[str, ...] | None = None
    energy_j: float | None = None
    fan: int | None = None
    ecc: bool | None = None
    recovery_action: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the facts as they travel: as JSON has them, versions as lists of numbers."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain


def card_facts() -> list[CardFacts]:
    """Return all cards of this machine, in NVML's order; MIG instances stand in place of their card; empty without a driver.

    A card that fell off the bus is listed with ``present=False``.
    """
    with session() as nvml:
        return [] if nvml is None else facts_in(nvml)


def facts_in(nvml: Nvml) -> list[CardFacts]:
    """Return what `card_facts` does, in a session that stays open."""
    cuda = cuda_version(nvml)
    told = ((card, {} if whole is None else _facts(nvml, card, whole)) for card, _, whole in each_card(nvml))
    return [CardFacts(**_plain(card), cuda=cuda, **more) for card, more in told]


def throttle_reasons(mask: int) -> tuple[str, ...]:
    """Return the names of the reasons in NVML's bit mask, sorted; a bit that has no name here keeps its number, as ``bit_9``."""
    named = dict(_REASONS)
    return tuple(sorted(named.get(1 << n, f"bit_{n}") for n in range(mask.bit_length()) if mask >> n & 1))


def _facts(nvml: Nvml, card: Card, handle: Any) -> dict[str, Any]:
    mask = nvml.ask("nvmlDeviceGetCurrentClocksEventReasons", handle)
    if mask is None:  # the name before driver 535
        mask = nvml.ask("nvmlDeviceGetCurrentClocksThrottleReasons", handle)
    ecc = nvml.ask("nvmlDeviceGetEccMode", handle)
    return {
        "pci": _pci(nvml.ask("nvmlDeviceGetPciInfo", handle)),
        "pcie": Pcie(
            generation=nvml.ask("nvmlDeviceGetCurrPcieLinkGeneration", handle),
            generation_max=nvml.ask("nvmlDeviceGetMaxPcieLinkGeneration", handle),
            width=nvml.ask("nvmlDeviceGetCurrPcieLinkWidth", handle),
            width_max=nvml.ask("nvmlDeviceGetMaxPcieLinkWidth", handle),
        ),
        "sm_mhz": nvml.ask("nvmlDeviceGetClockInfo", handle, _SM_CLOCK),
        "memory_mhz": nvml.ask("nvmlDeviceGetClockInfo", handle, _MEMORY_CLOCK),
        "throttle": None if mask is None else throttle_reasons(mask),
        "fan": nvml.ask("nvmlDeviceGetFanSpeed", handle),
        "ecc": None if ecc is None else bool(ecc[0]),
        "recovery_action": _recovery(nvml, handle),
        **({} if card.mig_of else _power(nvml, handle)),
    }


def _power(nvml: Nvml, handle: Any) -> dict[str, float | None]:
    limit = nvml.ask("nvmlDeviceGetPowerManagementLimit", handle)
    return {
        "power_limit_w": _thousandth(nvml.ask("nvmlDeviceGetEnforcedPowerLimit", handle) if limit is None else limit),
        "power_limit_default_w": _thousandth(nvml.ask("nvmlDeviceGetPowerManagementDefaultLimit", handle)),
        "energy_j": _thousandth(nvml.ask("nvmlDeviceGetTotalEnergyConsumption", handle)),
    }


def _thousandth(value: int | None) -> float | None:
    return None if value is None else value / 1000


def _recovery(nvml: Nvml, handle: Any) -> str | None:
    found = nvml.ask("nvmlDeviceGetFieldValues", handle, [_RECOVERY_FIELD])
    if not found or found[0].nvmlReturn != 0:
        return None
    number = int(found[0].value.uiVal)
    return _RECOVERY[number] if number < len(_RECOVERY) else f"action_{number}"


def _pci(info: Any) -> str | None:
    return None if info is None else f"{info.domain:04x}:{info.bus:02x}:{info.device:02x}"


def _plain(card: Card) -> dict[str, Any]:
    return {field.name: getattr(card, field.name) for field in fields(Card)}
