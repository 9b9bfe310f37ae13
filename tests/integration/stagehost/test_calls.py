"""Real stage hosts: kept, shared, evicted, and exact about what they give back."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dgpunet_dask.errors import BadWorkload, ModelUnavailable, StageFailed
from dgpunet_dask.stagehost.frames import pack, unpack, write_frames
from dgpunet_dask.stagehost.hosts import Limits
from dgpunet_dask.stagehost.inline import call_light
from tests.integration.stagehost.helpers import DIGEST, Agent, exists, in_thread, spec, until
from tests.integration.stagehost.test_kept import ByHand

STAGES = """
import os, sys, time
from dgpunet_dask import Demand, Stage
from dgpunet_dask.errors import ModelUnavailable

class Who(Stage):
    def load(self, *, tag="t"):
        self.tag = tag
    def __call__(self, batch):
        self.count("items", len(batch))
        self.note("last", batch[-1])
        return [(os.getpid(), self.tag, self.context.job_id) for _ in batch]

class Double(Stage):
    def __call__(self, batch):
        return [a * 2 for a in batch]

class Sizes(Stage):
    def __call__(self, batch):
        return [(len(item), len(batch)) for item in batch]

class Noisy(Stage):
    demand = Demand(vram="2GiB", resident="1GiB", features=["bf16"])
    def load(self, *, model, size: int = 3, **rest): pass
    def __call__(self, batch):
        print("to stdout"); os.write(1, b"raw\\n"); print("to stderr", file=sys.stderr)
        os.system("echo from a child")
        return batch

class Raises(Stage):
    def __call__(self, batch):
        self.count("lost")
        if batch[0] == "own": raise ModelUnavailable(model="m", why="none here")
        if batch[0] == "exit": sys.exit(4)
        if batch[0] == "lambda": return [lambda: 0]
        raise KeyError("nope")

class Where(Stage):
    def load(self): self.path = os.environ["CUDA_VISIBLE_DEVICES"]
    def __call__(self, batch):
        return [(self.path, os.environ["OMP_NUM_THREADS"], self.device, self.context.torch_device, os.getcwd())]

class Waits(Stage):
    def __call__(self, batch):
        open(batch[0] + ".began", "w").close()
        while not os.path.exists(batch[0]): time.sleep(0.01)
        return [os.getpid()]

class Total(Stage):
    def __call__(self, items):
        yield sum(items)

class Unloads(Stage):
    def load(self, *, file): self.file = file
    def __call__(self, batch): return [os.getpid()]
    def unload(self): open(self.file, "w").write("unloaded")
"""


@pytest.fixture(autouse=True)
def workload(agent: Agent) -> None:
    agent.write(STAGES)


def call(agent, called, *items):
    return unpack(agent.client.call(called, pack(list(items))).frames)


def test_a_loaded_stage_is_kept_across_calls_and_jobs(agent):
    first = call(agent, spec("Who", load={"tag": "x"}), 1)
    second = call(agent, spec("Who", load={"tag": "x"}, job_id="j2"), 1)
    assert first[0][:2] == second[0][:2]
    assert (first[0][2], second[0][2]) == ("j1", "j2")
    other = call(agent, spec("Who", load={"tag": "y"}), 1)
    assert other[0][0] != first[0][0]
    assert other[0][1] == "y"


def test_results_counts_and_batches(agent):
    result = agent.client.call(spec("Who", batch_items=2), pack([1, 2, 3]))
    assert result.items == 3
    assert result.counts == {"items": 3, "=last": 3}
    assert result.seconds < 10
    items = ["a" * n for n in (5, 1, 9, 1, 4)]
    sizes = call(agent, spec("Sizes", batch_tokens=10), *items)
    assert [size for size, _ in sizes] == [5, 1, 9, 1, 4]
    assert [count for _, count in sizes] == [2, 2, 1, 2, 2]
    assert call(agent, spec("Sizes")) == []


def _shared_files():
    """What of ours could be in /dev/shm: named by us, or by Python's shared memory. Other programs on this machine use it too."""
    return {name for name in os.listdir("/dev/shm") if name.startswith(("dgpunet", "psm_"))}


def test_large_arrays_cross_in_shared_memory_and_nothing_is_left(agent):
    array = np.random.default_rng(0).random(50_000_000 // 8)
    call(agent, spec("Double"), array[:10])
    shared, fds = _shared_files(), len(os.listdir("/proc/self/fd"))
    kept = [call(agent, spec("Double"), array) for _ in range(3)]
    for found in kept:
        np.testing.assert_array_equal(found[0], array * 2)
        found[0][0] = 1.0
    assert _shared_files() <= shared
    until(lambda: len(os.listdir("/proc/self/fd")) <= fds, "no descriptor is left")
    (child,) = agent.pids()
    links = [os.readlink(fd) for fd in Path(f"/proc/{child}/fd").iterdir() if fd.is_symlink()]
    assert not [link for link in links if "dgpunet-frames" in link]


def test_what_user_code_prints_is_in_the_log_and_not_in_the_protocol(agent):
    assert call(agent, spec("Noisy", load={"model": "m"}), 1, 2) == [1, 2]
    (log,) = agent.hosts.book.log_folder.glob("noisy-*.log")
    for line in ("to stdout", "raw", "to stderr", "from a child"):
        assert line in log.read_text().splitlines()


@pytest.mark.parametrize(("item", "kind"), [("x", "KeyError"), ("exit", "SystemExit"), ("lambda", "PicklingError")])
def test_an_exception_is_told_with_its_traceback_and_the_stage_stays(agent, item, kind):
    with pytest.raises(StageFailed) as caught:
        call(agent, spec("Raises"), item)
    assert caught.value.fields["kind"] in {kind, "AttributeError"}
    assert "stages.py" in caught.value.fields["traceback"] or item == "lambda"
    (pid,) = agent.pids()
    with pytest.raises(StageFailed):
        call(agent, spec("Raises"), "x")
    assert agent.pids() == [pid]


def test_our_own_errors_keep_their_class(agent):
    with pytest.raises(ModelUnavailable, match="none here"):
        call(agent, spec("Raises"), "own")


def test_a_stage_host_sees_its_card_alone(tmp_path):
    agent = Agent(tmp_path / "cards", cards={"3090": "GPU-77"})
    agent.start()
    try:
        agent.write(STAGES)
        real = call(agent, spec("Where", device="3090", torch_device="cuda:0", vram_mib=100, threads=2), 0)[0]
        simulated = call(agent, spec("Where", device="5090", vram_mib=100), 0)[0]
        assert real[:4] == ("GPU-77", "2", "3090", "cuda:0")
        assert simulated[:4] == ("", "1", "5090", "cpu")
        assert real[4] != str(agent.home.workloads / DIGEST)
    finally:
        agent.stop()


def test_calls_at_once_on_a_cpu_have_processes_of_their_own(agent, tmp_path):
    done = [str(tmp_path / name) for name in "ab"]
    calls = [in_thread(lambda f=f: call(agent, spec("Waits"), f)) for f in done]
    until(lambda: all(Path(f + ".began").exists() for f in done) or any(found for found, _ in calls), "both calls run at once")
    assert [found for found, _ in calls] == [[], []]
    assert len(agent.pids()) == 2
    for f in done:
        Path(f).touch()
    for _, thread in calls:
        thread.join(timeout=30)
    assert sorted(found[0][0] for found, _ in calls) == agent.pids()


def test_calls_at_once_on_a_card_share_one_process(agent, tmp_path):
    done = str(tmp_path / "a")
    on_card = spec("Waits", device="4090l", vram_mib=100, resident_mib=10)
    calls = [in_thread(lambda: call(agent, on_card, done)) for _ in range(3)]
    until(lambda: Path(done + ".began").exists() or any(found for found, _ in calls), "the first call runs")
    (resident,) = agent.now(agent.hosts.residents)["4090l"]
    assert resident.pop("load_s") > 0
    assert resident == {"stage": "waits", "model": None, "id": on_card.host_key, "mib": 10, "busy": True}
    assert not agent.client.evict("4090l", "waits")
    Path(done).touch()
    for _, thread in calls:
        thread.join(timeout=30)
    assert [found for found, _ in calls] == [[agent.pids()]] * 3


def test_another_version_under_the_same_name_takes_the_place_of_an_idle_one(agent):
    first = call(agent, spec("Who", device="4090l", vram_mib=100, resident_mib=10, load={"tag": "a"}), 1)[0][0]
    second = call(agent, spec("Who", device="4090l", vram_mib=100, resident_mib=20, load={"tag": "b"}), 1)[0][0]
    assert first != second
    assert not exists(first)
    assert [r["mib"] for r in agent.now(agent.hosts.residents)["4090l"]] == [20]


def test_idle_processes_on_a_cpu_are_capped_and_the_longest_unused_goes(tmp_path):
    agent = Agent(tmp_path / "capped", limits=Limits(cpu_hosts=2))
    agent.start()
    try:
        agent.write(STAGES)
        pid = {tag: call(agent, spec("Who", load={"tag": tag}), 1)[0][0] for tag in "ab"}
        assert call(agent, spec("Who", load={"tag": "a"}), 1)[0][0] == pid["a"]
        newest = call(agent, spec("Who", load={"tag": "c"}), 1)[0][0]
        assert agent.pids() == sorted([pid["a"], newest])
    finally:
        agent.stop()


def test_evicting_unloads_and_reports_once_the_process_is_gone(agent, tmp_path):
    on_card = spec("Unloads", device="4090l", vram_mib=100, resident_mib=50, load={"file": str(tmp_path / "told")})
    seen: list[tuple[str, list]] = []
    with agent.client.subscribe(["4090l", "5090"], lambda device, residents: seen.append((device, residents))):
        (pid,) = call(agent, on_card, 1)
        assert agent.client.evict("4090l", on_card.host_key)
        assert not exists(pid)
        assert (tmp_path / "told").read_text() == "unloaded"
        until(lambda: ("4090l", []) in seen[2:], "the subscriber hears that nothing is left")
    mib = [[r["mib"] for r in residents] for device, residents in seen if device == "4090l"]
    assert mib[0] == mib[-1] == []
    assert [50] in mib
    assert ("5090", []) in seen
    assert agent.client.evict("4090l", "unloads"), "nothing is left to evict"


def test_stopping_unloads_and_leaves_nothing(agent, tmp_path):
    (pid,) = call(agent, spec("Unloads", load={"file": str(tmp_path / "told")}), 1)
    fds = agent.home.agent_socket
    agent.stop()
    assert not exists(pid)
    assert (tmp_path / "told").exists()
    assert not fds.exists()


def test_facts_are_read_by_importing_the_code(agent):
    facts = agent.client.inspect(DIGEST, {"n": ("stages:Noisy", None), "d": ("stages:Double", None), "e": ("stages:Who", None)})
    assert facts["n"] == {
        "demand": {"vram": "2GiB", "resident": "1GiB", "features": ["bf16"]},
        "light": False,
        "load_params": ["model", "size"],
        "load_required": ["model"],
    }
    assert facts["d"] == {"demand": None, "light": True, "load_params": [], "load_required": []}
    assert facts["e"]["load_params"] == ["tag"]
    assert agent.pids() == []
    with pytest.raises(BadWorkload, match="no class"):
        agent.client.inspect(DIGEST, {"n": ("stages:Missing", None)})


def test_gather_runs_once_over_files_and_its_process_ends(agent, tmp_path):
    files = [tmp_path / str(i) for i in range(3)]
    for i, file in enumerate(files):
        write_frames(file, pack([i, 10 * i]))
    result = agent.client.gather(spec("Total", folder=str(tmp_path)), files)
    assert unpack(result.frames) == [33]
    until(lambda: not agent.pids(), "a process of one job ends with its call")


ONE_JOB = """
import os, tempfile
from dgpunet_dask import Stage

class Source(Stage):
    def load(self, *, tag): self.tag = tag
    def __call__(self):
        yield (os.getpid(), self.tag, os.getcwd(), tempfile.gettempdir(), self.context.job_id, self.context.user.name)
    def unload(self): raise RuntimeError("of the job before")

class Gather(Stage):
    def __call__(self, items):
        yield os.getpid(), list(items), os.getcwd()
"""


def test_the_process_of_a_source_is_kept_for_the_next_job_of_its_user(tmp_path):
    clock = ByHand()
    agent = Agent(tmp_path / "home", clock=clock)
    agent.start()
    try:
        agent.write(ONE_JOB)

        def source(job, user="ann"):
            (tmp_path / job).mkdir()
            told = spec("Source", job_id=job, folder=str(tmp_path / job), load={"tag": job}, keep_s=60.0, user=user)
            found = list(agent.client.stream(told, 1, 1 << 20))
            until(lambda: not any(row["busy"] for row in agent.hosts.rows()), "the source has ended")
            return unpack(found[0].frames)[0]

        pid, *rest = source("one")
        assert rest == ["one", str(tmp_path / "one"), str(tmp_path / "one"), "one", "ann"]
        assert agent.client.inspect(DIGEST, {"s": ("stages:Source", None)})["s"]["load_required"] == ["tag"]
        assert agent.pids() == [pid], "facts are read where the code is loaded already"
        gathering = spec("Gather", job_id="one", folder=str(tmp_path / "one"), keep_s=60.0, user="ann")
        assert unpack(agent.client.gather(gathering, []).frames)[0][0] == pid, "the gather stage follows in the same process"
        shutil.rmtree(tmp_path / "one")
        again = source("two")
        assert again == (pid, "two", str(tmp_path / "two"), str(tmp_path / "two"), "two", "ann")
        assert source("three", "bob")[0] != pid, "another user's jobs have a process of their own"
        clock.now += 61
        until(lambda: not agent.pids(), "what nobody came back for ends")
    finally:
        agent.stop()


def test_the_kept_process_of_a_job_that_failed_is_ended_with_it(agent, tmp_path):
    agent.write(ONE_JOB)
    told = spec("Source", folder=str(tmp_path), load={"tag": 1}, keep_s=60.0)
    assert list(agent.client.stream(told, 1, 1 << 20))
    until(lambda: not agent.hosts.rows()[0]["busy"], "the source has ended")
    assert agent.client.end_job("j1") == 1
    assert agent.pids() == []


def test_light_stages_behave_alike_in_the_calling_process(agent):
    light = spec("Sizes", batch_tokens=10)
    items = pack(["a" * n for n in (5, 1, 9, 1, 4)])
    inside = call_light(light, items, agent.home.workloads)
    outside = agent.client.call(light, items)
    assert unpack(inside.frames) == unpack(outside.frames)
    assert (inside.items, inside.counts) == (outside.items, outside.counts)
    with pytest.raises(StageFailed, match="KeyError"):
        call_light(spec("Raises"), pack(["x"]), agent.home.workloads)
    array = np.zeros(10_000)
    found = unpack(call_light(spec("Double"), pack([array]), agent.home.workloads).frames)[0]
    assert not np.shares_memory(found, array)


def test_a_home_with_a_long_name_is_served_through_a_short_folder(tmp_path):
    agent = Agent(tmp_path / ("long" * 30))
    agent.start()
    try:
        agent.write(STAGES)
        assert call(agent, spec("Who"), 1)[0][1] == "t"
        folder = agent.home.agent_socket.parent
        assert folder.parent == Path("/tmp")
        assert folder.stat().st_mode & 0o777 == 0o700
    finally:
        agent.stop()
    assert not folder.exists()


def test_a_socket_that_a_killed_agent_left_is_taken_over(tmp_path):
    left = Agent(tmp_path / "other")
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(left.home.agent_socket))
    stale.close()
    left.start()
    try:
        left.write(STAGES)
        assert call(left, spec("Who"), 1)
    finally:
        left.stop()


def test_another_user_is_refused(agent, monkeypatch):
    monkeypatch.setattr("dgpunet_dask.stagehost.listening.os.getuid", lambda: os.geteuid() + 1)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(agent.home.agent_socket))
        sock.settimeout(20)
        assert sock.recv(1) == b""


def test_stages_do_not_share_an_interpreter_lock(agent):
    one, two = call(agent, spec("Who"), 1)[0][0], call(agent, spec("Where"), 0)
    assert two
    pids = agent.pids()
    assert len(pids) == 2
    assert one in pids
    assert os.getpid() not in pids


def test_the_child_needs_the_standard_library_only():
    root = Path(__file__).parents[3]
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); import dgpunet_dask.stagehost.child, dgpunet_dask;"
        "bad = {m.partition('.')[0] for m in sys.modules} - set(sys.stdlib_module_names) - {'dgpunet_dask', '__main__'};"
        "print(sorted(bad))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", script, str(root)], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stdout.strip() == "[]", done.stderr
