"""The whole error tree.

A class's docstring is its message; the braces are filled from the keyword arguments, and the last sentence names the cure.
`exit_code` is the documented status of the command line (design: 2 usage, 3 check, 100-105 jobs, 130 interrupted)::

    DgpunetError (1)
    ├── UsageError (2)
    │   ├── BadValue, BadName, MissingPath, UnreadablePath, SlowPaths, UnknownParameter, MissingParameter
    │   ├── MalformedFile           every mistake of a file at once, as file:line:col
    │   ├── NewerFormat, ModelUnavailable, RerankerUnavailable, BadWorkload, NeedsHead, OtherFleetRunning, OtherPolicyRunning, NoCases,
    │   │   NoRecordedFleet, LoopbackOnly, KeyReused, ResultsElsewhere
    │   ├── BadToken, TokenRefused, CertificateRefused, JoinRefused, TooManyAttempts, TooManyJobs,
    │   │   OverQuota
    │   ├── NoIdentity, NotAllowed
    │   │   ├── PathNotAllowed, CodeNotAllowed, OtherUser
    │   ├── NoEndpoint, NoModelNamed, EndpointKeyRefused, EndpointRefused
    ├── StartFailed (1), SchedulerOutOfReach (1), LowDisk (1), OutputFailed (1)
    ├── EndpointFailed (1)
    │   ├── EndpointBusy, AnswerBroken
    ├── CheckFailed (3)
    │   ├── PolicyCasesFailed
    ├── JobFailed (100)
    │   ├── StageFailed, StageHostLost, StageHung, EnvironmentFailed, DiskFull (StageDiskFull), OutOfFiles, DamagedFile (DamagedLedger)
    │   ├── StageOutOfMemory, ForeignMemory, FolderMissing
    │   ├── UnitsFailed, Quarantined, DependencyFailed, WorkerKilled
    ├── PeerFailed (1)
    │   ├── PeerBusy
    ├── StillRunning (101), StillDraining (101)
    ├── NotFound (102)
    │   ├── NoSuchWorkload, NoSuchJob, NoSuchIndex, NoSuchFile, NoSuchLines, NoHead (HeadAway), NoSuchNode
    ├── JobCancelled (103)
    ├── JobLost (104)
    ├── Unplaceable (105)
    └── Interrupted (130), Detached (130)
"""

from __future__ import annotations

from dgpunet_dask.errors.access import (
    BadToken,
    CertificateRefused,
    CodeNotAllowed,
    JoinRefused,
    NoIdentity,
    NotAllowed,
    OtherUser,
    OverQuota,
    PathNotAllowed,
    TokenRefused,
    TooManyAttempts,
    TooManyJobs,
    whole_seconds,
)
from dgpunet_dask.errors.asking import (
    AnswerBroken,
    EndpointBusy,
    EndpointFailed,
    EndpointKeyRefused,
    EndpointRefused,
    NoEndpoint,
    NoModelNamed,
)
from dgpunet_dask.errors.base import (
    DgpunetError,
    ReportedError,
    did_you_mean,
    rebuild_error,
)
from dgpunet_dask.errors.cluster import (
    CheckFailed,
    HeadAway,
    Interrupted,
    LowDisk,
    NoHead,
    NoSuchFile,
    NoSuchIndex,
    NoSuchJob,
    NoSuchLines,
    NoSuchNode,
    NoSuchWorkload,
    NotFound,
    OutputFailed,
    PeerBusy,
    PeerFailed,
    PolicyCasesFailed,
    SchedulerOutOfReach,
    StartFailed,
    StillDraining,
)
from dgpunet_dask.errors.jobs import (
    DamagedFile,
    DamagedLedger,
    DependencyFailed,
    Detached,
    DiskFull,
    EnvironmentFailed,
    FolderMissing,
    ForeignMemory,
    JobCancelled,
    JobFailed,
    JobLost,
    OutOfFiles,
    Quarantined,
    StageDiskFull,
    StageFailed,
    StageHostLost,
    StageHung,
    StageOutOfMemory,
    StillRunning,
    UnitsFailed,
    Unplaceable,
    WorkerKilled,
)
from dgpunet_dask.errors.usage import (
    BadName,
    BadValue,
    BadWorkload,
    KeyReused,
    LoopbackOnly,
    MalformedFile,
    MissingParameter,
    MissingPath,
    ModelUnavailable,
    NeedsHead,
    NewerFormat,
    NoCases,
    NoRecordedFleet,
    OtherFleetRunning,
    OtherPolicyRunning,
    Problem,
    RerankerUnavailable,
    ResultsElsewhere,
    SlowPaths,
    UnknownParameter,
    UnreadablePath,
    UsageError,
)

__all__ = [
    "AnswerBroken",
    "BadName",
    "BadToken",
    "BadValue",
    "BadWorkload",
    "CertificateRefused",
    "CheckFailed",
    "CodeNotAllowed",
    "DamagedFile",
    "DamagedLedger",
    "DependencyFailed",
    "Detached",
    "DgpunetError",
    "DiskFull",
    "EndpointBusy",
    "EndpointFailed",
    "EndpointKeyRefused",
    "EndpointRefused",
    "EnvironmentFailed",
    "FolderMissing",
    "ForeignMemory",
    "HeadAway",
    "Interrupted",
    "JobCancelled",
    "JobFailed",
    "JobLost",
    "JoinRefused",
    "KeyReused",
    "LoopbackOnly",
    "LowDisk",
    "MalformedFile",
    "MissingParameter",
    "MissingPath",
    "ModelUnavailable",
    "NeedsHead",
    "NewerFormat",
    "NoCases",
    "NoEndpoint",
    "NoHead",
    "NoIdentity",
    "NoModelNamed",
    "NoRecordedFleet",
    "NoSuchFile",
    "NoSuchIndex",
    "NoSuchJob",
    "NoSuchLines",
    "NoSuchNode",
    "NoSuchWorkload",
    "NotAllowed",
    "NotFound",
    "OtherFleetRunning",
    "OtherPolicyRunning",
    "OtherUser",
    "OutOfFiles",
    "OutputFailed",
    "OverQuota",
    "PathNotAllowed",
    "PeerBusy",
    "PeerFailed",
    "PolicyCasesFailed",
    "Problem",
    "Quarantined",
    "ReportedError",
    "RerankerUnavailable",
    "ResultsElsewhere",
    "SchedulerOutOfReach",
    "SlowPaths",
    "StageDiskFull",
    "StageFailed",
    "StageHostLost",
    "StageHung",
    "StageOutOfMemory",
    "StartFailed",
    "StillDraining",
    "StillRunning",
    "TokenRefused",
    "TooManyAttempts",
    "TooManyJobs",
    "UnitsFailed",
    "UnknownParameter",
    "Unplaceable",
    "UnreadablePath",
    "UsageError",
    "WorkerKilled",
    "did_you_mean",
    "rebuild_error",
    "whole_seconds",
]
