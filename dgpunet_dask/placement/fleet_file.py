"""The fleet file: hosts and cards written down (design §5.2). Text in, `Fleet` out; no file is read here.

Names are text. A name such as ``3090`` is a number to YAML and must stand in quotes, which the mistake says.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, Field

from dgpunet_dask.config.yamlfile import Document, YamlModel, check_version, load, parsed, validate
from dgpunet_dask.errors import BadValue, Problem
from dgpunet_dask.model.fleet import Device, Fleet, Host, features_of, is_arch
from dgpunet_dask.units import Mib, parse_duration, parse_rate, parse_version

FORMAT_VERSION: Final = 1

#: Speed of a host's CPU on the scale of the shipped fleet, where 1 is 50 TFLOPS of dense bf16: a desktop's 16 to 32 threads reach
#: about one. It only has to stay far below any card, since a CPU is considered where no card can ever hold the work.
CPU_SPEED: Final = 0.02

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def _name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise ValueError("use letters, digits, dot, underscore and hyphen, starting with a letter or digit")
    return text


def _arch(text: str) -> str:
    if not is_arch(text):
        raise ValueError("write it as sm_86 or compute_120")
    return text


def _some(text: str) -> Mib:
    size = Mib(text)
    if size == 0:
        raise BadValue(what="size", value=text, why="it must be more than 0; leave the key out where the size is not known")
    return size


def _speed(number: float) -> float:
    if not 1e-6 <= number <= 1e6:
        raise ValueError("write a number between 0.000001 and 1000000; 1 is 50 TFLOPS of dense bf16")
    return number


def _moving(text: str) -> float:
    rate = parse_rate(text)
    if rate == 0:
        raise BadValue(what="rate", value=text, why="it must be more than 0; leave the key out where the rate is not known")
    return rate


Name = Annotated[str, AfterValidator(_name)]
Amount = Annotated[Mib, parsed(Mib)]
Size = Annotated[Mib, parsed(_some)]
Rate = Annotated[float, parsed(_moving)]
Duration = Annotated[float, parsed(parse_duration)]
Version = Annotated[tuple[int, ...], parsed(parse_version)]


class _Defaults(YamlModel):
    reserve: Amount = Mib.of(0)
    link: Rate | None = None


class _Gpu(YamlModel):
    model: str | None = None
    vram: Size | None = None
    compute_capability: Version | None = None
    speed: Annotated[float, Field(gt=0), AfterValidator(_speed)] = 1.0
    reserve: Amount | None = None
    bandwidth: Rate | None = None
    driver: Version | None = None
    runtime_arches: list[Annotated[str, AfterValidator(_arch)]] | None = None
    features: list[Name] | None = None
    cordoned: bool = False
    display: bool | None = None


class _Host(YamlModel):
    roles: list[Name] = Field(default_factory=list)
    ram: Size | None = None
    cpus: Annotated[int, Field(gt=0)] | None = None
    link: Rate | None = None
    power: Literal["mains", "battery"] | None = None
    idle: Duration | None = None
    gpus: dict[Name, _Gpu] = Field(default_factory=dict)


class _FleetFile(YamlModel):
    version: Literal[1]
    defaults: _Defaults = _Defaults()
    hosts: dict[Name, _Host]


def parse_fleet(text: str, file: str) -> Fleet:
    """Return the fleet that a file states: its hosts, their cards, and the device ``HOST/cpu`` of each host.

    Parameters
    ----------
    text, file
        The file's content, and its name for messages.

    Raises
    ------
    MalformedFile
        With every mistake as file:line:col.
    NewerFormat
        For a version that this release does not know.
    """
    document = load(text, file)
    check_version(document, FORMAT_VERSION)
    parsed_file = validate(document, _FleetFile, [_repeated_names, _reserve_beyond_vram])
    hosts = tuple(_host(name, host, parsed_file.defaults) for name, host in parsed_file.hosts.items())
    cards = (
        _card(name, host_name, gpu, parsed_file.defaults)
        for host_name, host in parsed_file.hosts.items()
        for name, gpu in host.gpus.items()
    )
    return Fleet(hosts, (*cards, *map(cpu_of, hosts)))


def cpu_of(host: Host) -> Device:
    """Return the device that stands for a host's CPU."""
    return Device(name=host.cpu_device, host=host.name, kind="cpu", speed=CPU_SPEED)


def _host(name: str, host: _Host, defaults: _Defaults) -> Host:
    return Host(
        name=name,
        roles=tuple(host.roles),
        ram_mib=None if host.ram is None else int(host.ram),
        cpus=host.cpus,
        link=defaults.link if host.link is None else host.link,
        power=host.power,
        idle_s=host.idle,
    )


def _card(name: str, host: str, gpu: _Gpu, defaults: _Defaults) -> Device:
    derived = frozenset[str]() if gpu.compute_capability is None else features_of(gpu.compute_capability)
    return Device(
        name=name,
        host=host,
        model=gpu.model,
        vram_mib=None if gpu.vram is None else int(gpu.vram),
        capability=gpu.compute_capability,
        speed=gpu.speed,
        reserve_mib=int(defaults.reserve if gpu.reserve is None else gpu.reserve),
        bandwidth=gpu.bandwidth,
        driver=gpu.driver,
        runtime_arches=None if gpu.runtime_arches is None else tuple(gpu.runtime_arches),
        features=derived if gpu.features is None else frozenset(gpu.features),
        cordoned=gpu.cordoned,
        display=gpu.display,
    )


def _repeated_names(document: Document) -> Iterator[Problem]:
    """Yield each device whose name another host has given already: names are unique in the fleet, since policies use them alone."""
    first: dict[str, str] = {}
    for host, gpu, _ in _gpus(document):
        if gpu in first:
            what = f"device {gpu!r} is in host {first[gpu]!r} already; give each device of the fleet its own name"
            yield document.key_problem(("hosts", host, "gpus", gpu), what)
        first.setdefault(gpu, host)


def _reserve_beyond_vram(document: Document) -> Iterator[Problem]:
    """Yield each card that keeps back more than it has, so that nothing could ever run on it."""
    for host, gpu, card in _gpus(document):
        try:
            vram, reserve = Mib(card["vram"]), Mib(card["reserve"])
        except (BadValue, KeyError, TypeError):
            continue  # the model tells what is wrong with them
        if reserve >= vram > 0:
            path = ("hosts", host, "gpus", gpu, "reserve")
            yield document.problem(
                path, f"reserve: {reserve} leaves nothing of the card's {vram}; keep back less, or use `cordoned: true`"
            )


def _gpus(document: Document) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Yield host, name and data of each card as far as the file has the right shape."""
    for host, inside in _mapping(document.data, "hosts").items():
        for gpu, card in _mapping(inside, "gpus").items():
            yield host, gpu, card if isinstance(card, Mapping) else {}


def _mapping(data: Any, key: str) -> Mapping[str, Any]:
    found = data.get(key) if isinstance(data, Mapping) else None
    return found if isinstance(found, Mapping) else {}
