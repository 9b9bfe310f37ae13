"""The cards of one machine: driver, bus, limits, events, memory. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from dgpunet_dask.hardware.xids import meaning_of
from dgpunet_dask.observe.facts import Facts
from dgpunet_dask.observe.finding import Check, Finding

#: A link falls to a slower generation while its card idles, by design; from this utilisation on (%), it should not.
LOADED: Final = 50
#: A power limit this far below the card's default costs speed that placement does not know of.
LIMIT_SHARE: Final = 0.95
#: What a card with a desktop should keep free, MiB.
DISPLAY_MIB: Final = 1024
#: Drivers that hold a card for somebody else: it is passed to a virtual machine.
PASSED_THROUGH: Final = frozenset({"vfio-pci", "pci-stub"})
#: Why a card runs slower than it could, with what to do. Other reasons (idle, a power cap under load) are how cards work.
SLOWED: Final = {
    "thermal": "clean its fans and filters, give the machine air, or lower the power limit with `nvidia-smi -pl`",
    "power_brake": "check the power supply and the card's power cables: the supply asked the card to slow down",
    "hw_slowdown": "check temperature, power cables and supply: the card's own protection slows it",
}


def card_subject(card: Facts) -> str:
    """Return ``HOST/CARD``."""
    number = card.number("index")
    return f"{card.host}/{card.text('name') or card.text('uuid') or ('card' if number is None else f'card {number:g}')}"


def driver(facts: Facts) -> Iterator[Finding]:
    """Whether the driver answers for every card that the bus has."""
    check = Check("driver", "hardware", facts.host)
    on_bus = [row for row in facts.rows("pci") if row.text("driver") not in PASSED_THROUGH]
    cards = facts.rows("cards")
    if facts.flag("nvml", "available") is None:
        return
    if not facts.flag("nvml", "available"):
        yield _no_driver(check, facts, on_bus) if on_bus else check.ok("no NVIDIA card: work with `cpu_ok` runs here")
    elif len({card.number("index") for card in cards}) < min(len(on_bus), facts.number("nvml", "nodes") or len(on_bus)):
        yield check.fault(
            f"{len(on_bus)} NVIDIA cards are on the bus, and the driver answers for fewer",
            "reseat the card and its power cables, look for `Xid 79` in `dmesg`, then restart the machine",
            on_bus=[row.text("address") for row in on_bus], answering=[card.text("uuid") for card in cards],
        )  # fmt: skip
    elif cards:
        yield check.ok(f"the driver answers for all {len(cards)} cards" if len(cards) > 1 else "the driver answers for the card")
    else:
        yield check.ok("a driver without a card: work with `cpu_ok` runs here")


def _no_driver(check: Check, facts: Facts, on_bus: list[Facts]) -> Finding:
    bound = sorted({name for row in on_bus if (name := row.text("driver"))})
    if "nvidia" in bound:
        what, cure = "the driver is loaded, but its library NVML does not answer", (
            "restart the machine if the driver was upgraded meanwhile; in a container, pass the driver in (`--gpus all`)"
        )
    elif bound:
        what, cure = f"{', '.join(bound)} drives the card, which cannot compute", "install NVIDIA's driver, then restart the machine"
    else:
        what, cure = "an NVIDIA card is on the bus, and no driver runs it", "install NVIDIA's driver, then restart the machine"
    return check.fault(what, cure, on_bus=[row.text("address") for row in on_bus], nvml=facts.text("nvml", "why"))


def lost(card: Facts) -> Iterator[Finding]:
    """Whether the card still answers, and whether the driver wants something done to it."""
    check = Check("card_lost", "hardware", card_subject(card))
    action = card.text("recovery_action")
    if card.flag("present") is False:
        yield check.fault(
            "the card fell off the bus", "restart the machine; if it comes back, reseat the card and its power cables, or cool it",
            uuid=card.text("uuid"), problem=card.text("problem"),
        )  # fmt: skip
    elif action not in (None, "none"):
        yield check.fault(f"the driver asks for a recovery: {action}", _recovery(str(action)), recovery_action=action)
    else:
        yield check.ok("answers", uuid=card.text("uuid"), temperature_c=card.number("temperature_c"))


def _recovery(action: str) -> str:
    if "reboot" in action:
        return "drain the host, then restart the machine"
    return "drain the host, end what uses the card, then `nvidia-smi --gpu-reset` or restart the machine"


def throttle(card: Facts) -> Iterator[Finding]:
    """Whether something other than its work holds the card back."""
    check = Check("throttle", "hardware", card_subject(card))
    if card.at("throttle") is None:
        return
    reasons = card.texts("throttle")
    slowed = [word for word in SLOWED if any(word in reason for reason in reasons)]
    told: dict[str, Any] = {"reasons": list(reasons), "temperature_c": card.number("temperature_c"), "power_w": card.number("power_w")}
    for word in slowed:
        yield check.warn(f"runs slower than it could: {', '.join(r for r in reasons if word in r)}", SLOWED[word], **told)
    if not slowed:
        yield check.ok("nothing holds it back", **told)


def pcie(card: Facts) -> Iterator[Finding]:
    """Whether the card has all the lanes and the generation that card and slot allow. An idle card may save on both."""
    check = Check("pcie_link", "hardware", card_subject(card))
    now = {key: card.number("pcie", key) for key in ("width", "width_max", "generation", "generation_max")}
    pairs = [(now[key], now[f"{key}_max"]) for key in ("width", "generation")]
    if not all(seen is not None and most is not None for seen, most in pairs):
        return
    narrow = any(seen < most for seen, most in pairs if seen is not None and most is not None)
    text = f"PCIe generation {now['generation']:g} of {now['generation_max']:g}, x{now['width']:g} of x{now['width_max']:g}"
    busy = card.number("utilisation")
    if narrow and busy is not None and busy >= LOADED:
        cure = "reseat the card, use the slot next to the processor, remove a riser, and look at the slot's setting in the firmware"
        yield check.warn(f"{text} under load", cure, **now, utilisation=busy)
    else:
        yield check.ok(f"{text}, looked at while it idles" if narrow else text, **now, utilisation=busy)


def power_limit(card: Facts) -> Iterator[Finding]:
    """Whether somebody lowered the power limit."""
    check = Check("power_limit", "hardware", card_subject(card))
    limit, default = card.number("power_limit_w"), card.number("power_limit_default_w")
    if limit is None or default is None:
        yield check.ok("no power limit is reported, as usual in laptops", power_limit_w=limit, default_w=default)
    elif limit < default * LIMIT_SHARE:
        cure = f"if that is not meant: `sudo nvidia-smi -i {card.text('uuid') or card.at('index')} -pl {default:g}`"
        yield check.warn(f"the power limit is {limit:g} W, the card's default {default:g} W", cure, power_limit_w=limit, default_w=default)
    else:
        yield check.ok(f"power limit {limit:g} W", power_limit_w=limit, default_w=default)


def ecc(card: Facts) -> Iterator[Finding]:
    """Say whether the card's memory corrects its errors."""
    check = Check("ecc", "hardware", card_subject(card))
    on = card.flag("ecc")
    if on:
        yield check.ok("its memory corrects errors (ECC)", ecc=True)
    else:
        what = "ECC is off" if on is False else "no ECC, as usual in consumer cards"
        yield check.ok(f"{what}: the canary stands in for it", ecc=on)


def xids(facts: Facts) -> Iterator[Finding]:
    """Whether the driver told of errors (Xid) that are the card's, and of those that are a program's."""
    names = {card.text("uuid"): card_subject(card) for card in facts.rows("cards")}
    for row in facts.rows("xid"):
        number, uuid = row.number("xid"), row.text("uuid")
        if number is None:
            continue
        severity, _, meaning = meaning_of(int(number))
        what = f"the driver reported Xid {number:g}: {meaning}"
        told = {"xid": number, "at": row.number("at"), "severity": severity, "uuid": uuid}
        subject = names.get(uuid) or f"{facts.host}/{uuid or row.text('pci') or 'card'}"
        if severity == "critical":
            cure = "drain the host, restart the machine, and run `dgpunet-dask doctor --canary`; if it returns, the card or its slot is broken"
            yield Check("xid", "hardware", subject).fault(what, cure, **told)
        elif severity == "job":
            cure = "look at the job that ran then: `dgpunet-dask jobs list`; the same unit failing on two cards is the unit's fault"
            yield Check("xid", "workload", subject).warn(what, cure, **told)
        elif severity != "silent":
            yield Check("xid", "hardware", subject).warn(what, "watch whether it returns; `dmesg | grep Xid` lists them", **told)


def canary(facts: Facts) -> Iterator[Finding]:
    """Whether a known computation gave the known result, bit for bit."""
    for row in facts.rows("canary"):
        check = Check("canary", "hardware", f"{facts.host}/{row.text('device') or 'cpu'}")
        told = {key: row.at(key) for key in ("mismatches", "wrong", "seconds", "gflops")}
        good = row.flag("ok")
        if good:
            yield check.ok("a known computation gave the known result", **told)
        elif good is False:
            yield check.fault(
                "a known computation gave another result: the card or its memory computes wrong",
                "drain the host, undo any overclocking, cool the card and run `dgpunet-dask doctor --canary` again; "
                "if it stays, the card is broken, and what it computed lately is to be doubted",
                **told,
            )  # fmt: skip
        else:
            yield check.warn(f"the canary could not run: {row.text('why') or 'no reason given'}", _CANARY_CURE, **told)


_CANARY_CURE: Final = "see what the versions group says of torch and the driver; a card without free memory is tried again when it idles"


def display(card: Facts) -> Iterator[Finding]:
    """Whether a card with a desktop keeps room for it."""
    if not card.flag("display"):
        return
    check = Check("display_reserve", "hardware", card_subject(card))
    kept = card.number("reserve_mib")
    if kept is None:
        return
    if kept < DISPLAY_MIB and (card.number("vram_mib") or 0) > DISPLAY_MIB * 8:
        yield check.warn(
            f"a desktop draws on it, and only {kept:g} MiB are kept free", "raise `reserve` of that card in the fleet file to 1GiB or more",
            reserve_mib=kept,
        )  # fmt: skip
    else:
        yield check.ok(f"a desktop draws on it; {kept:g} MiB are kept free", reserve_mib=kept)
