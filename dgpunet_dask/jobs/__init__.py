"""Jobs: what a workload is, how its units run over Dask, and what becomes durable.

From the outside in: `service` keeps all jobs for the head's HTTP API, `driving` takes one to its end, `runner` pulls its units from the source,
`attempting` brings each to its commit while `watching` looks for slow ones, `flights` has them as Dask tasks, and `task` is the thin function that
runs in Dask workers.
`ledger` holds what is durable; `states`, `units`, `admission`, `judging`, `straggling`, `causes`, `progress`, `quotas` and `requeue` decide, and
are pure.
"""
