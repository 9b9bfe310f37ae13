"""Sizes, rates, durations, versions: what is read, and what is refused because its unit would be a guess."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dgpunet_dask.errors import BadValue
from dgpunet_dask.units import Mib, VersionSpec, parse_bytes, parse_duration, parse_rate, parse_version, shown_bytes


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("1B", 1),
        ("1KiB", 1024),
        ("2GiB", 2 << 30),
        ("1.5 GiB", 3 << 29),
        ("500 MB", 500_000_000),
        ("1tib", 1 << 40),
        (" 3mb ", 3_000_000),
    ],
)
def test_sizes(text: str, count: int) -> None:
    assert parse_bytes(text) == count


def test_a_size_is_shown_in_the_unit_that_it_has() -> None:
    assert [shown_bytes(size) for size in (3 << 29, 10 << 20, 3 << 10, 0)] == ["1.5 GiB", "10.0 MiB", "3 KiB", "0 KiB"]


@pytest.mark.parametrize("text", ["", "2", "2G", "GiB", "-1GiB", "2 GiB/s", "1e3MiB", "١GiB?"])
def test_sizes_that_would_be_guesses(text: str) -> None:
    with pytest.raises(BadValue, match="2GiB"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("value", "mib"), [("1MiB", 1), ("1B", 1), ("1025KiB", 2), ("1.5GiB", 1536), ("0B", 0), (0, 0), (Mib.of(7), 7)]
)
def test_mib_rounds_up_so_that_a_charge_is_never_below_the_need(value: str | int, mib: int) -> None:
    assert Mib(value) == mib


@pytest.mark.parametrize("value", [1, 4096, True, False])
def test_mib_refuses_a_bare_number(value: int) -> None:
    with pytest.raises(BadValue, match="unit"):
        Mib(value)


@given(st.integers(0, 10**7))
def test_mib_text_reads_back(mib: int) -> None:
    assert Mib(str(Mib.of(mib))) == mib
    assert pickle.loads(pickle.dumps(Mib.of(mib))) == mib


@given(st.integers(0, 1 << 50))
def test_mib_covers_its_bytes(count: int) -> None:
    mib = Mib(f"{count}B")
    assert 0 <= (mib << 20) - count < 1 << 20


@pytest.mark.parametrize(("text", "rate"), [("10Gbit/s", 1.25e9), ("1GB/s", 1e9), ("8 bit/s", 1), ("2.5Mbit/s", 312_500)])
def test_rates(text: str, rate: float) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize("text", ["", "10", "10Gbit", "10Gib/s", "fast", "-1GB/s"])
def test_rates_that_would_be_guesses(text: str) -> None:
    with pytest.raises(BadValue, match="10Gbit/s"):
        parse_rate(text)


@pytest.mark.parametrize(
    ("text", "seconds"), [("15m", 900), ("10s", 10), ("250ms", 0.25), ("2h", 7200), ("1d", 86400), (3, 3), (0.5, 0.5)]
)
def test_durations(text: str | float, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "10", "10 minutes", "-1s", True])
def test_durations_that_are_none(text: str) -> None:
    with pytest.raises(BadValue, match="15m"):
        parse_duration(text)


@pytest.mark.parametrize(("text", "version"), [("8.9", (8, 9)), ("12.0", (12, 0)), ("550.54.14", (550, 54, 14)), ("8", (8,))])
def test_versions(text: str, version: tuple[int, ...]) -> None:
    assert parse_version(text) == version


@pytest.mark.parametrize("text", ["", "8.", ".9", "8.9a", " 8.9", 8.9, None])
def test_versions_must_be_text(text: str) -> None:
    with pytest.raises(BadValue, match="quoted"):
        parse_version(text)


@pytest.mark.parametrize(
    ("spec", "version", "holds"),
    [
        (">=8.9", "8.10", True),  # as floats 8.10 is 8.1
        (">=8.9", "12.0", True),  # as text 12.0 sorts before 8.9
        (">8.9", "8.9", False),
        (">8.9", "8.10", True),
        ("8.9", "8.9", True),
        ("8.9", "8.6", False),
        ("8.9", "9.0", True),
        (">=550", "550.54.14", True),
        (">550", "550", False),
        ("==550", "550.0", True),
        ("==550", "550.1", False),
        (">=8.0,<10", "9.0", True),
        (">=8.0,<10", "12.0", False),
        (">= 8.0 , <= 8.9", "8.9", True),
        ("<9", "8.10", True),
    ],
)
def test_version_conditions(spec: str, version: str, holds: bool) -> None:
    assert VersionSpec(spec).accepts(parse_version(version)) is holds


@pytest.mark.parametrize("text", ["", ">=", "=>8", "8.9,", "~=8", "!=8", 8.9, "8.x"])
def test_version_conditions_that_are_none(text: str) -> None:
    with pytest.raises(BadValue, match=r">=8\.9"):
        VersionSpec(text)


@given(
    st.lists(
        st.tuples(st.sampled_from([">=", "<=", "==", ">", "<", ""]), st.integers(0, 20), st.integers(0, 20)), min_size=1, max_size=3
    )
)
def test_version_condition_text_reads_back(clauses: list[tuple[str, int, int]]) -> None:
    spec = VersionSpec(",".join(f"{op}{major}.{minor}" for op, major, minor in clauses))
    assert VersionSpec(str(spec)) == spec
    assert hash(VersionSpec(str(spec))) == hash(spec)
    assert pickle.loads(pickle.dumps(spec)) == spec


@given(st.tuples(st.integers(0, 20), st.integers(0, 20)), st.tuples(st.integers(0, 20), st.integers(0, 20)))
def test_version_conditions_order_as_tuples_do(version: tuple[int, int], bound: tuple[int, int]) -> None:
    text = f"{bound[0]}.{bound[1]}"
    assert VersionSpec(f">={text}").accepts(version) is (version >= bound)
    assert VersionSpec(f"<{text}").accepts(version) is (version < bound)
    assert VersionSpec(f"=={text}").accepts(version) is (version == bound)
