"""`dgpunet-dask policy`: the group of all that is done with policies. Its commands lie in files of their own."""

from __future__ import annotations

import click

from dgpunet_dask.cli.policy_derive import derive
from dgpunet_dask.cli.policy_explain import explain
from dgpunet_dask.cli.policy_lint import lint
from dgpunet_dask.cli.policy_replay import diff, replay
from dgpunet_dask.cli.policy_test import test


@click.group()
def policy() -> None:
    """Write and check the rules that decide where work goes."""


policy.add_command(derive)
policy.add_command(diff)
policy.add_command(explain)
policy.add_command(lint)
policy.add_command(replay)
policy.add_command(test)
