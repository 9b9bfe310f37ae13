"""What is installed, and whether two hosts' software fits together."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from dataclasses import asdict, replace
from importlib import metadata

import pytest

import dgpunet_dask
from dgpunet_dask.errors import BadValue
from dgpunet_dask.hardware import software
from dgpunet_dask.hardware.nvml import Card
from dgpunet_dask.hardware.skew import arch_skew
from dgpunet_dask.hardware.software import (
    OVERRIDE,
    Package,
    Software,
    compare_software,
    installed_package,
    lock_hash,
    locked,
    software_facts,
    software_from,
)

PACKAGES = ("click==8.1.7", "dask==2026.7.1", "numpy==2.4.6", "psutil==7.0")
MINE = Software(
    python="3.11.7", dgpunet_dask="0.4.2", dask="2026.7.1", distributed="2026.7.1", dask_cuda="26.10.0", torch="2.13.0+cu130",
    numpy="2.4.6", faiss="1.15.1", packages=PACKAGES, lock_hash=lock_hash(PACKAGES),
)  # fmt: skip


def test_equal_hosts_are_ok_and_nothing_else():
    found = compare_software(MINE, MINE)
    assert {s.level for s in found} == {"ok"}
    assert {s.what for s in found} == {"dgpunet_dask", "distributed", "dask", "python", "dask_cuda", "torch", "numpy", "faiss"}


@pytest.mark.parametrize(
    ("what", "theirs", "level"),
    [
        ("dgpunet_dask", "0.5.0", "refuse"),
        ("dgpunet_dask", "1.4.2", "refuse"),
        ("dgpunet_dask", "0.4.3", "warn"),
        ("distributed", "2026.7.2", "refuse"),
        ("dask", "2026.8.0", "refuse"),
        ("python", "3.12.7", "refuse"),
        ("python", "3.11.9", "warn"),
        ("torch", "2.12.0+cu130", "warn"),
        ("torch", "2.13.0+cpu", "ok"),
        ("torch", None, "warn"),
        ("numpy", "1.26.4", "warn"),
        ("dask_cuda", "26.8.0", "warn"),
        ("openvino", "2026.1.0", "warn"),
        ("faiss", "1.14.0", "warn"),
    ],
)
def test_what_a_difference_means(what, theirs, level):
    both = [compare_software(MINE, replace(MINE, **{what: theirs})), compare_software(replace(MINE, **{what: theirs}), MINE)]
    for found, swapped in zip(both, (False, True), strict=True):
        (skew,) = [s for s in found if s.what == what]
        assert skew.level == level
        assert (skew.theirs, skew.ours)[swapped] == theirs
        assert (skew.cure is None) == (level == "ok")
        assert skew.why
        assert found[0] is skew or level == "ok", "the worst comes first"


def test_a_refusal_names_both_versions_and_the_cure():
    skew = compare_software(MINE, replace(MINE, distributed="2025.1.0"))[0]
    assert str(skew) == (
        "distributed 2026.7.1 here, 2025.1.0 there: scheduler and workers must be of one release, for they trade pickled state; install the "
        "same release on both hosts: `pip install -c constraints.txt dgpunet-dask`, then restart the service"
    )


def test_other_packages_are_told_together():
    theirs = ("click==8.2.0", "numpy==2.4.6", "psutil==6.0", "nvidia-cublas==13.0")
    found = compare_software(MINE, replace(MINE, packages=theirs, lock_hash=lock_hash(theirs)))
    differ, alone = [s for s in found if s.what == "packages"]
    assert (differ.level, differ.ours, differ.theirs) == ("warn", "click 8.1.7, psutil 7.0", "click 8.2.0, psutil 6.0")
    assert (alone.level, alone.ours, alone.theirs) == ("ok", "none more", "nvidia-cublas")


def test_a_host_that_tells_nothing_is_not_refused_and_not_ok():
    found = compare_software(MINE, Software())
    assert {s.level for s in found} == {"warn"}
    assert "not reported there" in str(found[0])


def test_facts_travel_as_json_and_back():
    facts = software_facts(arches=("sm_86", "sm_90"))
    assert software_from(json.loads(json.dumps(asdict(facts)))) == facts


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({}, Software()),
        ({"python": "3.11.7", "novel": 1}, Software(python="3.11.7")),
        ({"python": 3, "torch": ["2"], "packages": "click==8", "torch_arches": [1], "dask": None}, Software()),
        ({"packages": ["a==1"], "torch_arches": []}, Software(packages=("a==1",), torch_arches=())),
    ],
)
def test_what_another_release_tells_is_read_with_a_doubt(raw, expected):
    assert software_from(raw) == expected


def test_this_host():
    facts = software_facts()
    assert (facts.python, facts.dgpunet_dask) == (platform.python_version(), dgpunet_dask.__version__)
    assert f"distributed=={facts.distributed}" in facts.packages
    assert f"dask=={facts.dask}" in facts.packages
    assert facts.lock_hash == lock_hash(facts.packages)
    assert facts.kernel
    assert facts.torch_arches is None
    assert not any(line.startswith(("pytest==", "ruff==")) for line in facts.packages), "tools of developers are not needed"


def test_sources_that_were_never_installed_report_no_packages(monkeypatch):
    monkeypatch.setattr(software, "locked", lambda: ())
    assert (software._asked().packages, software._asked().lock_hash) == ((), None)


def test_it_is_asked_once_and_nothing_heavy_is_loaded():
    script = (
        "import sys\nfrom dgpunet_dask.hardware.software import software_facts\n"
        "assert software_facts() is not None and software_facts().packages is software_facts().packages\n"
        "print(*(sys.modules.keys() & {'torch', 'distributed', 'dask', 'numpy', 'faiss', 'openvino', 'dask_cuda'}))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == ""


def test_an_override_stands_in_for_what_is_so(monkeypatch):
    plain = software_facts()
    monkeypatch.setenv(OVERRIDE, '{"distributed": "2025.1.0", "torch": null}')
    assert software_facts() == replace(plain, distributed="2025.1.0", torch=None)
    assert compare_software(plain, software_facts())[0].level == "refuse"
    monkeypatch.setenv(OVERRIDE, '{"packages": ["a==1"]}')
    assert software_facts() == replace(plain, packages=("a==1",), lock_hash=lock_hash(["a==1"]))
    monkeypatch.delenv(OVERRIDE)
    assert software_facts() == plain


@pytest.mark.parametrize("text", ["", "[]", "{", '{"novel": "1"}', '{"dask": 3}', '{"packages": "a==1"}', '{"packages": null}'])
def test_an_override_that_says_nothing_clear_is_refused(monkeypatch, text):
    monkeypatch.setenv(OVERRIDE, text)
    with pytest.raises(BadValue, match=OVERRIDE):
        software_facts()


def test_the_lock_follows_requirements_and_extras():
    needs = ["Mid.dle[fast,big]>=2", "absent>1; python_version > '3'", "spare; extra == 'other'"]
    installed = {
        "top": Package("1", needs),
        "mid-dle": Package("2", ["low", 'Quick; extra == "fast"', "never; extra == 'slow'", "round_trip"]),
        "low": Package("3", ["top"]),
        "quick": Package("4"),
        "round-trip": Package("5", ["mid-dle"]),
        **dict.fromkeys(("never", "spare", "stranger"), Package("9")),
    }
    assert locked("Top", installed.get) == ("low==3", "mid-dle==2", "quick==4", "round-trip==5", "top==1")


@pytest.mark.parametrize("name", ["dask", "scikit-learn", "click", "pytest"])
def test_what_is_installed_is_read_as_the_standard_library_reads_it(name):
    try:
        version, requires = metadata.version(name), metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        assert installed_package(name) is None
    else:
        assert installed_package(name) == Package(version, requires)


@pytest.mark.parametrize("name", ["no-such-package-here", ""])
def test_what_is_not_installed_is_not_there(name):
    assert installed_package(name) is None


def test_the_hash_is_of_the_set():
    assert lock_hash(PACKAGES) == lock_hash(PACKAGES[::-1])
    assert lock_hash(PACKAGES) != lock_hash(PACKAGES[1:])
    assert len(lock_hash(())) == 64


@pytest.mark.parametrize(
    ("capability", "arches", "said"),
    [
        ((12, 0), ("sm_80", "sm_86", "sm_90"), "torch has no code for RTX (sm_120): it is built for sm_80, sm_86, sm_90"),
        ((8, 9), (), "torch is built without CUDA, so RTX (sm_89) cannot run it"),
        ((8, 9), ("sm_80", "sm_86"), None),
        ((12, 0), ("sm_90", "compute_90"), None),
        ((12, 0), None, None),
        (None, ("sm_90",), None),
    ],
)
def test_a_card_that_torch_has_no_code_for_is_refused_by_name(capability, arches, said):
    found = arch_skew([Card(index=0, model="RTX", capability=capability)], arches)
    assert [s.why for s in found] == ([] if said is None else [said])
    assert all(s.level == "refuse" and "torch" in (s.cure or "") for s in found)
