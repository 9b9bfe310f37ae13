"""How jobs end other than well."""

from __future__ import annotations

from typing import Any

from dgpunet_dask.errors.base import DgpunetError


class JobFailed(DgpunetError):
    """The job failed: {why}"""

    exit_code = 100
    code = "job_failed"


class StageFailed(JobFailed):
    """Stage {stage} raised {kind}: {why}. The traceback is in `dgpunet-dask jobs logs`."""

    code = "stage_failed"


class StageHostLost(JobFailed):
    """The process of stage {stage} on {device} ended ({how}) during {attempts} attempt(s). Its last words are in {log}."""

    code = "stage_host_lost"


class WorkerKilled(JobFailed):
    """{deaths} Dask workers in a row ended while they ran stage {stage}. Their last words are in the workers' logs under `run/logs`."""

    code = "worker_killed"


class StageHung(JobFailed):
    """Stage {stage} on {device} reported no progress for {deadline_s:g} s and was killed. Raise `deadline:` in job.yaml if it needs longer."""

    code = "stage_hung"


class StageOutOfMemory(JobFailed):
    """Stage {stage} ran out of GPU memory: its peak was {peak} where {charge} were charged, on {cards}, after {attempts} attempt(s). Make
    its batches smaller, state a larger `vram` in its demand, or add a larger card; `on_oom` in a policy says how far the demand may grow.
    """

    code = "out_of_memory"


class ForeignMemory(JobFailed):
    """Other processes fill {device}: {free} were free where stage {stage} was promised {charge}, after {attempts} attempt(s). End them
    (`nvidia-smi` lists them), or keep room for them with `reserve` of that card in the fleet file.
    """

    code = "foreign_memory"


class EnvironmentFailed(JobFailed):
    """The environment {lock} of stage {stage} could not be built: {why}. Check the lock file by hand with `pip install -r {lock}`."""

    code = "environment_failed"


class DiskFull(JobFailed):
    """No space left on the disk of {path}. Nothing was published and the old state stays; free some space and submit again."""

    code = "disk_full"


class StageDiskFull(DiskFull):
    """No space left on a disk that stage {stage} wrote to; the system does not say which ({why}). Nothing was published and the old state
    stays; free some space where the stage writes and submit again.
    """

    code = "stage_disk_full"


class OutOfFiles(JobFailed):
    """No more files can be opened ({why}). Work goes on by itself once some are closed; if this comes again, raise `nofile` in
    /etc/security/limits.conf, or `LimitNOFILE` of the service.
    """

    code = "out_of_files"


class DamagedFile(JobFailed):
    """{path} is damaged: {why}. Remove it and submit again; what it held is computed anew."""

    code = "damaged_file"


class DamagedLedger(DamagedFile):
    """The ledger {path} cannot be read: {why}. If it is damaged, stop the head: `dgpunet-dask ledger restore` puts its last copy in its place,
    `dgpunet-dask ledger rebuild` makes it anew from what lies beside it.
    """

    code = "damaged_ledger"


class FolderMissing(JobFailed):
    """The {kind} {digest} is not on this machine, and no other gave it: {why}. Submit again; `dgpunet-dask doctor` tells who reaches whom."""

    code = "folder_missing"


class UnitsFailed(JobFailed):
    """{failed} of {total} units failed, the first one: {first} `dgpunet-dask jobs show` tells each cause; `jobs retry` runs these units alone."""

    code = "units_failed"


class Quarantined(JobFailed):
    """Unit {number} was given up after {attempts} attempt(s) on {hosts}: it ended every process that ran it. Look at its input and at
    `dgpunet-dask jobs logs`, then run it alone with `jobs retry`.
    """

    code = "quarantined"


class DependencyFailed(JobFailed):
    """Job {job_id} was to follow job {after}, which is {state}. Run that one again with `dgpunet-dask jobs retry {after}`, then this one."""

    code = "dependency_failed"


class StillRunning(DgpunetError):
    """Job {job_id} is still running after {timeout_s:g} s. `dgpunet-dask jobs wait {job_id}` waits on."""

    exit_code = 101
    code = "still_running"


class Detached(DgpunetError):
    """Detached; the job goes on. `dgpunet-dask jobs wait {job_ids}` joins it again."""

    exit_code = 130
    code = "detached"


class JobCancelled(DgpunetError):
    """Job {job_id} was cancelled. Submit it again to continue; finished work is reused."""

    exit_code = 103
    code = "cancelled"


class JobLost(DgpunetError):
    """The head that ran job {job_id} is gone and none took over. Start one with `dgpunet-dask up`: what it had accepted goes on there by itself."""

    exit_code = 104
    code = "lost"


class Unplaceable(DgpunetError):
    """No device of this fleet can ever hold {what}: {summary}. Lower the demand or add a device that fits."""

    exit_code = 105
    code = "unplaceable"

    @property
    def message(self) -> str:
        """The docstring, and the nearest change that would help where one is known."""
        fix = self.fields.get("fix")
        return f"{super().message} Nearest: {fix}." if fix else super().message

    @property
    def reasons(self) -> list[dict[str, Any]]:
        """One mapping per device: device, code, need, have."""
        return list(self.fields.get("verdicts", ()))
