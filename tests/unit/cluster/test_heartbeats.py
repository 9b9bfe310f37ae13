"""What a host may say in a heartbeat."""

from __future__ import annotations

import json

import pytest

from dgpunet_dask.cluster.heartbeats import REPORTS_MAX, beat_from
from dgpunet_dask.errors import BadValue

LEAST = {"address": "10.0.0.2", "peer_port": 8788, "boot": "b"}


def test_the_least_that_a_host_says():
    beat = beat_from(LEAST)
    assert (beat.address, beat.peer_port, beat.boot) == ("10.0.0.2", 8788, "b")
    assert (beat.roles, beat.facts, list(beat.workers), list(beat.reports), beat.crl) == ((), None, [], [], None)


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e999"])
@pytest.mark.parametrize(
    "part",
    ['"health": {"cards": [{"power_w": %s}]}', '"facts": {"fleet": {"hosts": [{"link": %s}]}}', '"stagehosts": [{"stage": "s", "busy": %s}]',
     '"listeners": [{"port": %s}]', '"workers": [{"device": "d", "restarts": %s}]', '"reports": [{"n": 1, "kind": "k", "x": %s}]'],
)  # fmt: skip
def test_numbers_that_no_json_has_are_refused(part, text):
    """They would be passed on to browsers and other programs, which refuse the whole answer then, all hosts in it."""
    said = json.loads("{" + part % text + "}")
    with pytest.raises(BadValue, match="finite"):
        beat_from({**LEAST, **said})


def test_the_number_of_reports_is_bounded():
    reports = [{"n": n, "kind": "k"} for n in range(1, REPORTS_MAX + 2)]
    assert len(beat_from({**LEAST, "reports": reports[:-1]}).reports) == REPORTS_MAX
    with pytest.raises(BadValue, match="reports"):
        beat_from({**LEAST, "reports": reports})


@pytest.mark.parametrize("address", ["10.0.0.2:80", "xps", "", "10.0.0.256", None, 7])
def test_an_address_is_an_ip_address(address):
    with pytest.raises(BadValue, match="address"):
        beat_from({**LEAST, "address": address})
