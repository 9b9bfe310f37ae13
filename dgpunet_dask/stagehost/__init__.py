"""The process that has a stage loaded, and the way to it.

A worker thread (`client`) calls the agent (`manager`) over a Unix socket; the agent passes the call to the process that holds the
stage (`child`), which it starts, watches and ends. `frames`, `wire`, `spec`, `loader`, `calls` and `child` need the standard library only:
they run in the interpreters of stage environments.
"""
