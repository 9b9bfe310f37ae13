"""The owner's settings: defaults, mistakes with their places, the published schema, and a file that changes under a process."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from dgpunet_dask.config.settings import Floor, PinnedModel, Quota
from dgpunet_dask.config.settings_file import (
    DEFAULTS,
    REST_S,
    SettingsWatch,
    parse_floor,
    parse_settings,
    read_settings,
    schema,
    settings_path,
)  # fmt: skip
from dgpunet_dask.errors import BadValue, MalformedFile, NewerFormat, UnreadablePath
from tests.helpers import ROOT

GIB = 1 << 30
FULL = """\
version: 1
roots: [/srv/code, ~/src]
quotas:
  jobs: 3
  users: {anna: {jobs: 50}, "b b": {units: 7, submissions_per_minute: 1}}
disk:
  floor: 10%
  logs: 2MiB
  stage_logs: 3 MB
  spill: 0B
  caches: 1.5GiB
  results: 1TiB
  results_days: 0.5
  ledger_backup: {host: xps, every: 1h}
"""


class HandClock:
    now = 0.0

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.now


def test_without_a_file_the_defaults_hold(tmp_path: Path) -> None:
    found = read_settings(settings_path(tmp_path))
    assert found == DEFAULTS == parse_settings("version: 1", "c")
    assert found.roots == ()
    assert (found.disk.logs, found.disk.stage_logs, found.disk.spill) == (GIB, GIB, 20 * GIB)
    assert (found.disk.caches, found.disk.results, found.disk.results_days) == (100 * GIB, 50 * GIB, 14)
    assert (found.disk.ledger_backup.host, found.disk.ledger_backup.every_s) == ("auto", 600)
    assert found.quotas.everybody == Quota(jobs=100, units=10_000_000, submissions_per_minute=600)


def test_everything_can_be_set() -> None:
    found = parse_settings(FULL, "c")
    assert found.roots == (Path("/srv/code"), Path("~/src").expanduser())
    assert found.quotas.of("carl") == Quota(jobs=3, units=10_000_000, submissions_per_minute=600)
    assert found.quotas.of("anna") == Quota(jobs=50, units=10_000_000, submissions_per_minute=600)
    assert found.quotas.of("b b") == Quota(jobs=3, units=7, submissions_per_minute=1)
    assert found.disk.floor == Floor(0.1, None)
    assert (found.disk.stage_logs, found.disk.caches, found.disk.spill, found.disk.results_days) == (3_000_000, 3 * GIB // 2, 0, 0.5)


def test_operators_have_a_quota_only_where_they_are_named() -> None:
    quotas = parse_settings(FULL, "c").quotas
    assert quotas.of("carl", operates=True) is None
    assert quotas.of(None) == quotas.everybody
    assert quotas.of("anna", operates=True) == quotas.of("anna")


def test_every_mistake_is_told_at_its_place() -> None:
    text = """\
version: 1
rots: [/a]
roots: [srv, 3, ~no-such-user-here/x]
quotas: {jobs: -1, users: {"": {}, bob: null}}
disk: {floor: 70%, logs: 10KiB, caches: 100, results_days: .inf, ledger_backup: {host: "*", every: 1s}}
"""
    with pytest.raises(MalformedFile) as raised:
        parse_settings(text, "c.yaml")
    places = [(p.line, p.col) for p in raised.value.problems]
    assert [line for line, _ in places] == [2, 3, 3, 3, 4, 4, 4, 5, 5, 5, 5, 5, 5]
    message = str(raised.value)
    for told in ("did you mean 'roots'", "from / or ~ on", "50% or less", "at least 1MiB", "with its unit", "at least 10s", "write auto"):
        assert told in message


def test_rerankers_are_named_with_folder_and_digest() -> None:
    [shown] = re.findall(r"^```yaml\n(.*?)^```$", (ROOT / "docs/howto/ranking.md").read_text(), re.MULTILINE | re.DOTALL)
    folder = Path("~/models/ms-marco-MiniLM-L6-v2").expanduser()
    assert parse_settings(shown, "c").rerankers == {"small": PinnedModel(folder=folder, digest="0123456789abcdef" * 4)}
    with pytest.raises(MalformedFile) as raised:
        parse_settings('version: 1\nrerankers:\n  "a b": {folder: /m, digest: ABC}\n  c: {folder: m}\n', "c.yaml")
    message = str(raised.value)
    for told in ("begins with a letter or digit", "model digest FOLDER", "from / or ~ on", "digest"):
        assert told in message


def test_a_newer_file_is_refused() -> None:
    with pytest.raises(NewerFormat):
        parse_settings("version: 2\nsomething: new", "c")


@pytest.mark.parametrize(
    ("text", "total", "kept"),
    [
        ("5%", 100 * GIB, 5 * GIB),
        ("5%, at most 20GiB", 100 * GIB, 5 * GIB),
        ("5%, at most 20GiB", 4000 * GIB, 20 * GIB),
        ("20GiB", 4000 * GIB, 20 * GIB),
        ("20GiB", 30 * GIB, 15 * GIB),
        ("0B", GIB, 0),
        ("0%", GIB, 0),
    ],
)
def test_the_floor_of_a_disk(text: str, total: int, kept: int) -> None:
    assert parse_floor(text).of(total) == kept


@pytest.mark.parametrize("text", ["", "%", "5", "5%,", "5% 20GiB", ", at most 1GiB", "at most 1GiB", "51%", "5%, at most 3", "-5%"])
def test_what_is_no_floor(text: str) -> None:
    with pytest.raises(BadValue):
        parse_floor(text)


# The schema


def fits(value: object, rule: dict) -> bool:
    """Whether `value` fits the part of JSON schema that ours uses."""
    if "$ref" in rule:
        rule = schema()["$defs"][rule["$ref"].rpartition("/")[2]]
    kinds = {"string": str, "integer": int, "number": int | float, "array": list, "object": dict}
    if not isinstance(value, kinds[rule["type"]]) or isinstance(value, bool) or value != rule.get("const", value):
        return False
    if isinstance(value, dict):
        known, more = rule.get("properties", {}), rule.get("additionalProperties", True)
        inner = [(value[key], known.get(key, more)) for key in value]
        return set(rule.get("required", ())) <= set(value) and all(r is not False and fits(v, r) for v, r in inner)
    if isinstance(value, list):
        return all(fits(item, rule["items"]) for item in value)
    if isinstance(value, str):
        return re.search(rule.get("pattern", ""), value) is not None
    return rule.get("minimum", value) <= value <= rule.get("maximum", value)


def test_the_published_schema_is_that_of_the_code() -> None:
    assert json.loads((ROOT / "docs/reference/config.schema.json").read_text()) == schema()


SIZES = st.one_of(st.from_regex(r"[0-9]{1,3}(\.[0-9])?\s?(GiB|MB|B|)", fullmatch=True), st.integers(0, 9), st.text(max_size=5))
FLOORS = st.one_of(SIZES, st.from_regex(r"[0-9]{1,3}%(, ?at most [0-9]GiB)?", fullmatch=True))
COUNTS = st.one_of(st.integers(-1, 5), st.floats(0, 2), st.just("3"), st.none())
QUOTA = dict.fromkeys(("jobs", "units", "submissions_per_minute", "other"), COUNTS)
FILES = st.fixed_dictionaries(
    {"version": st.sampled_from([1, 1, 1, "1"])},
    optional={
        "roots": st.lists(st.sampled_from(["/a", "~/b", "c", 1]), max_size=2),
        "quotas": st.fixed_dictionaries({}, optional=QUOTA | {"users": st.dictionaries(st.sampled_from(["a", "b"]), st.fixed_dictionaries({}, optional=QUOTA))}),
        "disk": st.fixed_dictionaries(
            {},
            optional=dict.fromkeys(("logs", "caches", "spill", "results"), SIZES)
            | {"floor": FLOORS, "results_days": st.integers(-1, 40), "ledger_backup": st.fixed_dictionaries({}, optional={"every": st.sampled_from(["1s", "1h", "x", 5]), "host": st.sampled_from(["a", "*", "auto"])})},
        ),
    },
)


@given(FILES)
def test_what_the_schema_refuses_is_a_mistake_and_most_mistakes_are_refused_by_it(data: dict) -> None:
    try:
        parse_settings(yaml.safe_dump(data), "c")
        good = True
    except MalformedFile as error:
        # bounds that a schema's patterns cannot tell
        good = all(any(why in p.what for why in ("or less", "at least 1MiB", "at least 10s")) for p in error.problems)
    assert fits(data, schema()) is good


# A file that changes


def test_a_change_counts_once_it_has_come_to_rest(tmp_path: Path) -> None:
    path, clock, told = tmp_path / "config.yaml", HandClock(), []
    watch = SettingsWatch(path, clock, told.append)
    assert watch.load() == DEFAULTS
    path.write_text("version: 1\nquotas: {jobs: 7}\n")
    assert watch.look() == DEFAULTS
    clock.now += REST_S / 2
    assert watch.look() == DEFAULTS
    path.write_text("version: 1\nquotas: {jobs: 70}\n")  # half of it was there
    assert watch.look() == DEFAULTS
    clock.now += 2 * REST_S
    assert watch.look().quotas.everybody.jobs == 70
    assert told == [watch.settings]
    path.unlink()
    assert watch.look().quotas.everybody.jobs == 70
    clock.now += 2 * REST_S
    assert watch.look() == DEFAULTS
    assert told[1:] == [DEFAULTS]


def test_a_mistake_leaves_the_last_good_settings_in_force(tmp_path: Path) -> None:
    path, clock = tmp_path / "config.yaml", HandClock()
    path.write_text("version: 1\nquotas: {jobs: 7}\n")
    watch = SettingsWatch(path, clock)
    good = watch.load()
    path.write_text("version: 1\nquotas: {jobs: seven}\n")
    watch.look()
    clock.now += 2 * REST_S
    assert watch.look() == good
    assert isinstance(watch.error, MalformedFile)
    path.write_text("version: 1\nquotas: {jobs: 8}\n# longer")
    watch.look()
    clock.now += 2 * REST_S
    assert watch.look() == replace(good, quotas=replace(good.quotas, everybody=replace(good.quotas.everybody, jobs=8)))
    assert watch.error is None


def test_a_wrong_file_is_an_error_at_the_start(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("disk: 5")
    with pytest.raises(MalformedFile):
        SettingsWatch(path).load()
    path.unlink()
    os.symlink(tmp_path, path)  # a folder
    with pytest.raises(UnreadablePath):
        SettingsWatch(path).load()
