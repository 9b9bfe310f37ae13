"""Devices, hosts and what is charged on them: frozen pictures that the pure core decides upon."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Final, Literal

DeviceKind = Literal["gpu", "cpu"]
ChargeKind = Literal["activation", "lease", "resident", "foreign"]
DeviceState = Literal["running", "paused", "cordoned", "draining", "lost"]

#: Feature, and the compute capability from which a card has it (NVIDIA's CUDA programming guide; flash-attention-2's README).
FEATURES_FROM: Final[Mapping[str, tuple[int, int]]] = {
    "bf16": (8, 0),
    "flash-attention-2": (8, 0),
    "fp8": (8, 9),
    "fp4": (10, 0),
}
_ARCH: Final = re.compile(r"(sm|compute)_(\d+)(\d)([a-z]?)")


def features_of(capability: tuple[int, ...]) -> frozenset[str]:
    """Return the features that a card of this compute capability has."""
    return frozenset(name for name, since in FEATURES_FROM.items() if capability >= since)


def is_arch(text: str) -> bool:
    """Whether `text` names an architecture that code is built for, such as ``sm_86``, ``compute_120``, ``sm_90a``."""
    return _ARCH.fullmatch(text) is not None


def runs_arch(capability: tuple[int, ...], arch: str) -> bool:
    """Whether a card of X.Y runs code built for `arch`.

    ``sm_Xz`` with z ≤ Y (binary code is compatible within a major version), ``compute_AB`` ≤ X.Y (compiled at load);
    an arch ending in ``a`` only exactly. Anything else is no arch of NVIDIA's and runs nowhere.
    """
    found = _ARCH.fullmatch(arch)
    if found is None:
        return False
    built = (int(found[2]), int(found[3]))
    if found[4]:
        return built == tuple(capability)
    if found[1] == "sm":
        return built[0] == capability[0] and built[1] <= capability[1]
    return built <= tuple(capability)


@dataclass(frozen=True, kw_only=True)
class Device:
    """One GPU, or a host's CPU.

    Parameters
    ----------
    name
        Unique in the fleet; a host's CPU is ``HOST/cpu``.
    vram_mib
        ``None`` for a CPU, or where the card does not report it.
    speed
        Relative throughput.
    reserve_mib
        Kept free for the desktop and the driver.
    runtime_arches
        What the installed torch was built for; ``None`` where not known.
    bandwidth
        Memory bandwidth in bytes per second, where known.
    uuid
        What NVML calls the card; ``None`` for simulated cards and CPUs.
    display
        Whether a display is attached; ``None`` where not known.
    """

    name: str
    host: str
    kind: DeviceKind = "gpu"
    model: str | None = None
    vram_mib: int | None = None
    capability: tuple[int, ...] | None = None
    speed: float = 1.0
    reserve_mib: int = 0
    bandwidth: float | None = None
    driver: tuple[int, ...] | None = None
    runtime_arches: tuple[str, ...] | None = None
    features: frozenset[str] = frozenset()
    cordoned: bool = False
    uuid: str | None = None
    display: bool | None = None

    @property
    def usable_mib(self) -> int | None:
        """VRAM less the reserve, ``None`` where VRAM is not known."""
        return None if self.vram_mib is None else max(0, self.vram_mib - self.reserve_mib)


@dataclass(frozen=True, kw_only=True)
class Host:
    """One machine. `link` is in bytes per second, `idle_s` seconds without keyboard or mouse; ``None`` means not known.

    `battery`: whether it has one, so that what feeds it may change.
    """

    name: str
    roles: tuple[str, ...] = ()
    ram_mib: int | None = None
    cpus: int | None = None
    link: float | None = None
    power: Literal["mains", "battery"] | None = None
    idle_s: float | None = None
    battery: bool | None = None

    @property
    def cpu_device(self) -> str:
        """The name of the device that stands for this host's CPU."""
        return f"{self.name}/cpu"


@dataclass(frozen=True, kw_only=True)
class Charge:
    """What one holder takes of one device.

    Parameters
    ----------
    holder
        The unit's key, or the name of a resident stage.
    kind
        ``activation`` for a running unit (it takes a unit slot of the device), ``lease`` for a stage replica's long hold (it takes
        none), ``resident`` for a loaded stage, ``foreign`` for processes that are not ours.
    stage, model, user, priority
        Of the demand, as policies match them: `priority` is the one in force.
    evictable
        A resident that no running unit uses: it can be unloaded to make room.
    share
        A unit's ``max_per_gpu``; ``None``: it runs with no other unit on its device.
    ends_s
        Seconds from now until the holder is expected to let go; ``None``: not known, or never.
    reload_s
        Seconds to load a resident again; ``None``: not known.
    """

    holder: str
    device: str
    vram_mib: int = 0
    ram_mib: int = 0
    cpus: int = 0
    kind: ChargeKind = "activation"
    stage: str | None = None
    exclusive: bool = False
    evictable: bool = False
    model: str | None = None
    user: str | None = None
    priority: str | None = None
    share: int | None = None
    ends_s: float | None = None
    reload_s: float | None = None

    def holds(self, stage: str | None, model: str | None) -> bool:
        """Whether this is `stage`, loaded with `model`; where one side does not say with which model, the stage alone tells."""
        if self.kind != "resident" or stage is None or self.stage != stage:
            return False
        return self.model is None or model is None or self.model == model


@dataclass(frozen=True)
class Fleet:
    """Hosts, devices and charges at one moment. Devices are kept in the order of their names.

    `minute`: of the local day, ``None`` where no clock was read. `booked`: for each device, the seconds from now until it will have
    worked off the waiting units that are ahead and mean to use it. `links`: measured bytes per second from one host to another; they
    win over what the hosts state of their own link.
    """

    hosts: tuple[Host, ...] = ()
    devices: tuple[Device, ...] = ()
    charges: tuple[Charge, ...] = ()
    states: Mapping[str, DeviceState] = field(default_factory=dict)
    minute: int | None = None
    booked: Mapping[str, float] = field(default_factory=dict)
    links: Mapping[tuple[str, str], float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "devices", tuple(sorted(self.devices, key=lambda d: d.name)))

    @cached_property
    def by_name(self) -> Mapping[str, Device]:
        """Devices by name."""
        return {d.name: d for d in self.devices}

    @cached_property
    def host_by_name(self) -> Mapping[str, Host]:
        """Hosts by name."""
        return {h.name: h for h in self.hosts}

    @cached_property
    def charges_by_device(self) -> Mapping[str, tuple[Charge, ...]]:
        """Charges on each device that has any."""
        found: dict[str, list[Charge]] = {}
        for charge in self.charges:
            found.setdefault(charge.device, []).append(charge)
        return {name: tuple(charges) for name, charges in found.items()}

    def charges_on(self, device: str) -> tuple[Charge, ...]:
        """Return what is charged on `device`."""
        return self.charges_by_device.get(device, ())

    def charged_mib(self, device: str) -> int:
        """Return the VRAM charged on `device`, in MiB."""
        return sum(c.vram_mib for c in self.charges_on(device))

    def free_mib(self, device: str) -> int | None:
        """Return total − reserve − charges, in MiB; ``None`` where VRAM is not known."""
        usable = self.by_name[device].usable_mib
        return None if usable is None else usable - self.charged_mib(device)

    def gpus(self) -> Iterator[Device]:
        """Yield the cards."""
        return (d for d in self.devices if d.kind == "gpu")

    def with_charges(self, charges: Iterable[Charge]) -> Fleet:
        """Return this fleet with `charges` instead of its own."""
        return replace(self, charges=tuple(charges))
