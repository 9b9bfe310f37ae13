"""What is told of an index that is followed: as long as its follower lives, and no longer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from dgpunet_dask.retrieval.described import described
from dgpunet_dask.retrieval.following import Followed, Follower, followed


def test_what_a_follower_tells_is_there_until_it_ends(home):
    assert followed(home, "x") is None
    with Follower(home, "x") as follower:
        assert followed(home, "x") == Followed(1, None)
        follower.tell(3, 100.5)
        assert followed(home, "x") == Followed(3, 100.5)
        assert (followed(home, "x").behind_s(102.0), followed(home, "x").behind_s(99.0)) == (1.5, 0.0)
        follower.tell(0, None)
        assert followed(home, "x").behind_s(1e9) == 0.0
        assert followed(home, "y") is None
    assert followed(home, "x") is None


def test_of_two_the_first_tells_and_then_the_other(home):
    with Follower(home, "x") as first, Follower(home, "x") as second:
        first.tell(1, 1.0)
        second.tell(2, 2.0)
        assert followed(home, "x") == Followed(1, 1.0)
        first.__exit__(None, None, None)
        assert followed(home, "x") is None
        second.tell(2, 2.0)
        assert followed(home, "x") == Followed(2, 2.0)


def test_a_killed_follower_follows_no_more(home):
    code = (
        "import sys; from pathlib import Path; from dgpunet_dask.config.home import Home; from dgpunet_dask.retrieval.following import Follower\n"
        "with Follower(Home(Path(sys.argv[1])), 'x'): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(home.root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        assert followed(home, "x") is not None
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert followed(home, "x") is None


def test_an_index_says_how_fresh_it_is(ingest, tree, home):
    root = tree({"a.py": "one"})
    ingest(root)
    ingest.clock.now += 50
    told = described(home, "x", clock=ingest.clock)
    assert (told["age_s"], told["watch"]) == ({"published": 50.0, "scanned": 50.0, "reconciled": 50.0}, None)
    with Follower(home, "x") as follower:
        follower.tell(2, ingest.clock.now - 1.5)
        assert described(home, "x", clock=ingest.clock)["watch"] == {"behind_s": 1.5, "paths": 2}
