"""Machines whose software differs: refused, warned of, or taken in by force; and one whose torch has no code for its card."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from dgpunet_dask.testing.homelab import ROOT
from tests.acceptance.realcluster.site import WHY_NOT, Site, short_folder, site
from tests.helpers import until

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(180),
    pytest.mark.skipif(WHY_NOT is not None, reason=f"hosts in namespaces: {WHY_NOT}"),
]

FAR, NEAR = "9999.1.0", "2.999.0"
REFUSED = f"{FAR} there: scheduler and workers must be of one release, for they trade pickled state"
CURE = "install the same release on both hosts: `pip install -c constraints.txt dgpunet-dask`"


@pytest.fixture(scope="module")
def four(homes: Path) -> Iterator[Site]:
    folder = short_folder(homes, "v")
    with site(folder, ("m18", "xps", "tower", "legion", "rig"), ()) as made:
        yield made


def pretend(made: Site, host: str, package: str, version: str) -> None:
    """Let a host have another version of a package, as far as its metadata says."""
    folder = made.lab.folder / f"{host}-packages" / f"{package}-{version}.dist-info"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
    made.lab.own[host] = {"PYTHONPATH": os.pathsep.join([str(folder.parent), str(ROOT)])}


def test_a_machine_with_another_release_of_dask_is_refused_and_may_come_once_it_is_cured(four):
    pretend(four, "xps", "distributed", FAR)
    token = four.lab.token("m18", "xps")
    before = four.lab.cli("xps", "doctor", "--pre", token, "--name", "xps", "--no-canary")
    assert before.code == 3, before
    assert f"distributed {FAR}, and m18 has" in before.out
    assert CURE in before.out
    ran = four.lab.cli("xps", "join", token, "--name", "xps")
    assert ran.code == 2, ran
    assert REFUSED in ran.err
    assert CURE in ran.err
    assert not (four.lab.home("xps") / "cluster.json").exists()
    assert four.lab.left("xps") == {}
    assert "xps" not in four.nodes()
    del four.lab.own["xps"]
    fits = four.lab.cli("xps", "doctor", "--pre", token, "--name", "xps", "--no-canary", "--json")
    found = {(f["check"], f["subject"]): f["level"] for f in fits.json["findings"]}
    levels = {subject: found["port_reach", subject] for check, subject in found if check == "port_reach"}
    assert set(levels.values()) == {"ok"}, levels
    assert "m18 -> xps" in levels
    assert (found["software", "xps"], found["join_token", "xps"]) == ("ok", "ok"), found
    cured = four.lab.cli("xps", "join", token, "--name", "xps")  # the refusal has not used the token up
    assert cured.code == 0, cured
    assert "warning" not in cured.err
    four.until_ready("xps")


def test_a_machine_that_differs_tolerably_joins_with_a_warning(four):
    pretend(four, "tower", "numpy", NEAR)
    ran = four.lab.join("m18", "tower")
    assert ran.code == 0, ran
    (warning,) = [line for line in ran.err.splitlines() if line.startswith("warning: numpy")]
    assert f"{NEAR} there: arrays of one may not unpickle in the other" in warning
    four.until_ready("tower")


def test_a_machine_that_is_joined_by_force_works_and_is_warned(four):
    pretend(four, "rig", "distributed", FAR)
    ran = four.lab.join("m18", "rig", "--force")
    assert ran.code == 0, ran
    assert any(line.startswith("warning: distributed") and REFUSED in line for line in ran.err.splitlines()), ran
    four.until_ready("rig")


def test_a_machine_that_was_upgraded_alone_runs_no_workers_until_it_is_cured(four):
    four.lab.ok("xps", "down")
    pretend(four, "xps", "distributed", FAR)
    ran = four.lab.cli("xps", "join", timeout_s=100)
    assert ran.code == 1, ran
    assert REFUSED in ran.err
    four.lab.ok("xps", "down")
    four.lab.own.pop("xps")
    again = four.lab.cli("xps", "join")
    assert again.code == 0, again
    four.until_ready("xps")


def test_a_machine_that_is_drained_is_upgraded_and_comes_back_drained(four):
    four.lab.ok("m18", "drain", "xps", timeout_s=100)
    four.lab.ok("xps", "down")
    again = four.lab.cli("xps", "join")
    assert again.code == 0, again
    assert "uncordon xps" in again.err
    assert {device["state"] for device in four.host("xps")["devices"]} == {"drained"}
    four.lab.ok("m18", "uncordon", "xps")
    four.until_ready("xps")


def test_a_card_that_torch_has_no_code_for_gets_no_work_and_doctor_tells(four):
    four.lab.own["legion"] = {"DGPUNET_RUNTIME_ARCHES": "sm_50 sm_70"}
    joined = four.lab.join("m18", "legion")
    assert joined.code == 0, joined
    four.until_ready("legion")
    code, why = four.api("/v1/explain", "POST", {"demand": {"stage": "work", "vram": "2GiB"}})
    assert code == 200
    (refusal,) = [verdict for verdict in why["verdicts"] if verdict["device"] == "rtx4070laptop-0"]
    assert refusal["code"] == "runtime_arch", refusal
    assert "sm_70" in str(refusal["have"]), refusal
    job = four.begin("arch", 24, 0.2)
    four.check_whole(job, "arch", 24)
    hosts = {row["host"] for row in four.notes("arch")}
    assert "legion" not in hosts
    assert len(hosts) >= 2
    doctor = four.lab.cli("m18", "doctor", "--json")
    assert doctor.code == 3, doctor
    (finding,) = [f for f in doctor.json["findings"] if f["check"] == "torch_arch" and f["level"] == "fault"]
    assert finding["subject"].startswith("legion/")
    assert "sm_89" in finding["what"] + finding["cure"]
    assert finding["cause"] == "versions"
    words = four.lab.cli("m18", "doctor", "--host", "legion")
    assert words.code == 3
    assert finding["what"] in words.out


def test_doctor_tells_of_versions_that_differ(four):
    doctor = four.lab.cli("m18", "doctor", "--json")
    found = [f for f in doctor.json["findings"] if f["cause"] == "versions" and f["level"] != "ok"]
    assert any("numpy" in f["what"] and f["subject"] == "tower" for f in found), found
    assert any("distributed" in f["what"] and f["subject"] == "rig" for f in found), found
    until(lambda: set(four.nodes()) == {"m18", "xps", "tower", "legion", "rig"}, 5, "all hosts")
