"""What the cluster and its machines did not do, and what is not there."""

from __future__ import annotations

from dgpunet_dask.errors.base import DgpunetError


class StartFailed(DgpunetError):
    """The cluster did not start: {why}. Its logs are in {logs}."""

    code = "start_failed"


class SchedulerOutOfReach(DgpunetError):
    """The head has lost its scheduler for good: {why}. Its supervisor starts it again; without one, start the cluster again."""

    code = "scheduler_out_of_reach"


class OutputFailed(DgpunetError):
    """Standard output could not be written: {why}. What the command had done by then stays; free space there, or choose another place for the output."""

    code = "output_failed"


class CheckFailed(DgpunetError):
    """The check {what} found {count} fault(s). They are listed above."""

    exit_code = 3
    code = "check_failed"


class PolicyCasesFailed(CheckFailed):
    """{count} case(s) fail with the changed policy files: {names}. `dgpunet-dask policy test {where}` tells why; mend the files or the cases."""

    code = "policy_cases"


class PeerFailed(DgpunetError):
    """Host {host} did not answer {request!r} on its peer port {address}: {why}. `dgpunet-dask doctor` tells whether it is up and reachable."""

    code = "peer_failed"


class PeerBusy(PeerFailed):
    """Host {host} did not answer {request!r} on its peer port {address}: {why}. Wait a few seconds, then ask again."""

    code = "peer_busy"


class NotFound(DgpunetError):
    """{what} was not found."""

    exit_code = 102
    code = "not_found"


class NoSuchWorkload(NotFound):
    """There is no workload {name!r}{hint} Give a shipped name ({known}) or the path of a folder with a job.yaml."""

    code = "no_workload"


class NoSuchJob(NotFound):
    """There is no job {job_id!r} on this cluster. `dgpunet-dask jobs list` shows those there are."""

    code = "no_job"


class NoSuchIndex(NotFound):
    """There is no index {name!r}{hint} `dgpunet-dask index list` shows those there are; `submit embed-codebase` makes one."""

    code = "no_index"


class NoSuchFile(NotFound):
    """The index {index} has no file {path!r}{hint} Give a path as hits have it: relative to the indexed tree, with `/`."""

    code = "no_file"


class NoSuchLines(NotFound):
    """{path} has {total} lines, none of them from {first} to {last}. Give start_line from 1 to {total}, and end_line no lower."""

    code = "no_lines"


class NoHead(NotFound):
    """No head answers at {where}. Start one with `dgpunet-dask up` (`head` for several machines), or check `--cluster` and $DGPUNET_CLUSTER."""

    code = "no_head"


class HeadAway(NoHead):
    """No head answers at {where} for now: its supervisor starts it again {when}, and its jobs go on then. See what it says in {logs}."""

    code = "head_away"


class NoSuchNode(NotFound):
    """There is no host {name!r} in this cluster; it has {known}. `dgpunet-dask nodes` shows them."""

    code = "no_node"


class StillDraining(DgpunetError):
    """Host {host} is still draining after {timeout_s:g} s and its grace. `dgpunet-dask nodes` shows what runs there."""

    exit_code = 101
    code = "still_draining"


class Interrupted(DgpunetError):
    """Interrupted. Nothing half-done was published."""

    exit_code = 130
    code = "interrupted"


class LowDisk(DgpunetError):
    """The disk of {path} has {free} left and work stops below {floor}. It goes on by itself once there is room: free some space, or lower
    `disk: floor:` in config.yaml.
    """

    code = "low_disk"
