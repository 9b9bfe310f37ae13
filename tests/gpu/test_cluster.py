"""Two hosts under TLS, one with this machine's own cards: a dask-cuda worker on them, an embed job, what `doctor` says, memory let go."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from dgpunet_dask.hardware.nvml import watching
from dgpunet_dask.testing.netns import permitted
from tests.acceptance.conftest import Cli
from tests.acceptance.realcluster.site import Site, corpus, short_folder, site
from tests.helpers import until

pytestmark = pytest.mark.timeout(400)
#: A card's device has no slash in its name, a processor's is HOST/cpu.
PLACED = re.compile(r"^placed embed\S* on ([^\s/]+)(?:\s|$)", re.MULTILINE)


def embedded_and_found(ran, search, texts: int) -> set[str]:
    """Check an embed job and a search in its index; return the cards that it was placed on."""
    assert ran.code == 0, ran.err
    assert (ran.json["state"], ran.json["units"]["failed"]) == ("done", 0)
    assert ran.json["metrics"]["embedded"] >= texts
    found = search("search", "alpha", "combine value 7 of alpha by rule 3", "-k", "3", "--json")
    assert found.json["hits"][0]["path"].startswith("alpha_"), found.err
    print(ran.json["metrics"])
    return set(PLACED.findall(ran.err))


@pytest.fixture(scope="module")
def two(card, homes: Path) -> Iterator[Site]:
    """A head without cards, and a host with the real ones, which has joined."""
    if (why := permitted()) is not None:
        pytest.skip(f"hosts in namespaces: {why}")
    with site(short_folder(homes, "gpu"), ("desk", "rig"), ("rig",), cards={}, real=("rig",)) as made:
        yield made


def test_a_real_card_joins_and_is_told_with_its_facts(two, card):
    rig = two.host("rig")
    rows = [row for row in rig["devices"] if "/" not in row["name"]]
    assert [(row["model"], row["vram_mib"], row["state"]) for row in rows][:1] == [(card.model, card.vram_mib, "running")]
    assert len([line for line in two.lab.left("rig").values() if "worker_main" in line and "--cuda" in line]) == len(rows)
    health = until(lambda: two.host("rig")["health"].get("cards", {}).get(card.uuid), 30, "how the card is")
    assert health["present"] is True
    print(health)


def test_an_embed_job_runs_on_it_and_the_memory_is_let_go(two, card, model):
    with watching() as ask:
        texts = corpus(two.lab.folder / "texts", "alpha", 24, 60)
        words = ("-v", "submit", "embed-codebase", "--set", f"path={texts}", "--set", "index=alpha", "--set", f"model={model}", "--json")
        cards = embedded_and_found(two.lab.ok("desk", *words, timeout_s=200), lambda *asked: two.lab.ok("desk", *asked), 24 * 60)
        assert cards == {two.card("rig")["name"]}
        held = ask(card.uuid).used_mib
        two.lab.ok("rig", "down")
        until(lambda: held - ask(card.uuid).used_mib >= 500, 30, "the card's memory")  # CUDA's context alone is as large


def test_doctor_finds_nothing_wrong_with_it(cli: Cli, card):
    done = cli("doctor", "--json", "--canary")
    bad = [finding for finding in done.json["findings"] if finding["level"] == "fault" and finding["cause"] == "hardware"]
    assert bad == []
    assert any(card.model in str(finding) for finding in done.json["findings"])


def test_a_loopback_cluster_uses_it_as_well(cli: Cli, card, model, tmp_path: Path):
    up = cli("up")
    assert up.code == 0, up.err
    texts = corpus(tmp_path, "alpha", 8, 30)
    ran = cli("-v", "submit", "embed-codebase", "--set", f"path={texts}", "--set", "index=alpha", "--set", f"model={model}", "--json")
    assert embedded_and_found(ran, cli, 8 * 30)
