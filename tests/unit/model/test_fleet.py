"""What a card of some capability runs, and what is free on it."""

from __future__ import annotations

import pytest

from dgpunet_dask.model.decision import NEVER_CODES, NOT_NOW_CODES, REASON_ORDER, Decision, Verdict
from dgpunet_dask.model.fleet import Charge, Device, Fleet, Host, features_of, is_arch, runs_arch


@pytest.mark.parametrize(
    ("capability", "features"),
    [
        ((7, 5), set()),
        ((8, 0), {"bf16", "flash-attention-2"}),
        ((8, 6), {"bf16", "flash-attention-2"}),
        ((8, 9), {"bf16", "flash-attention-2", "fp8"}),
        ((9, 0), {"bf16", "flash-attention-2", "fp8"}),
        ((10, 0), {"bf16", "flash-attention-2", "fp8", "fp4"}),
        ((12, 0), {"bf16", "flash-attention-2", "fp8", "fp4"}),
    ],
)
def test_features_follow_the_capability(capability: tuple[int, int], features: set[str]) -> None:
    assert features_of(capability) == features


@pytest.mark.parametrize(
    ("capability", "arch", "runs"),
    [
        ((8, 9), "sm_86", True),
        ((8, 9), "sm_89", True),
        ((8, 6), "sm_89", False),
        ((9, 0), "sm_89", False),
        ((12, 0), "sm_120", True),
        ((12, 0), "sm_90", False),
        ((12, 0), "compute_90", True),
        ((8, 9), "compute_90", False),
        ((9, 0), "sm_90a", True),
        ((9, 1), "sm_90a", False),
        ((12, 0), "compute_90a", False),
        ((8, 9), "gfx90a", False),
    ],
)
def test_which_code_a_card_runs(capability: tuple[int, int], arch: str, runs: bool) -> None:
    assert runs_arch(capability, arch) is runs
    assert is_arch(arch) is not arch.startswith("gfx")


def test_free_is_total_less_reserve_less_charges() -> None:
    card = Device(name="3090", host="h", vram_mib=24576, reserve_mib=512)
    fleet = Fleet((Host(name="h"),), (card,), (Charge(holder="a", device="3090", vram_mib=4096),))
    assert (card.usable_mib, fleet.charged_mib("3090"), fleet.free_mib("3090")) == (24064, 4096, 19968)
    assert fleet.with_charges(()).free_mib("3090") == 24064


def test_vram_not_reported_stays_not_reported() -> None:
    fleet = Fleet((Host(name="h"),), (Device(name="a", host="h"),))
    assert (fleet.devices[0].usable_mib, fleet.free_mib("a")) == (None, None)


def test_devices_stand_in_the_order_of_their_names() -> None:
    fleet = Fleet((Host(name="h"),), tuple(Device(name=n, host="h") for n in ("b", "c", "a")))
    assert [d.name for d in fleet.devices] == ["a", "b", "c"]


def test_reasons_are_named_in_the_documented_order() -> None:
    documented = (
        "denied not_allowed role owner vram_unknown vram_total host_ram host_cpus compute_capability feature driver runtime_arch "
        "lost draining cordoned exclusive share_limit reserved vram_free busy"
    )
    assert list(REASON_ORDER) == documented.split() == [*NEVER_CODES, *NOT_NOW_CODES]


def test_the_summary_counts_first_reasons_most_frequent_first() -> None:
    refusals = {
        "a": (Verdict("a", "vram_total", "2", "1"), Verdict("a", "feature", "x", "y")),
        "b": (Verdict("b", "vram_total", "2", "1"),),
        "c": (Verdict("c", "busy", "2", "1"),),
        "d": (Verdict("d", "not_allowed", "2", "1"),),
    }
    assert Decision("wait", refusals=refusals).summary() == "2 vram_total, 1 not_allowed, 1 busy"
