"""Jobs: what a workload is, how its units run over Dask, and what becomes durable.

`workload_file` and `params` are pure; `store` and `commit` write files; `task` is the thin function that runs in Dask workers;
`runner` drives one job and `service` keeps them all for the head's HTTP API.
"""
