"""`dgpunet-dask doctor`: what is wrong with this machine, or with the cluster."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from dgpunet_dask.cli.context import CliContext, emit_json, pass_context, printable, said_or_given
from dgpunet_dask.errors import CheckFailed, DgpunetError, LoopbackOnly, NoHead, NotAllowed, NotFound, UsageError

if TYPE_CHECKING:
    from dgpunet_dask.cluster.config import ClusterConfig, Ports
    from dgpunet_dask.observe.collect import Canary
    from dgpunet_dask.observe.finding import Finding


@click.command()
@click.argument("token", required=False, callback=said_or_given)
@click.option("--pre", is_flag=True, help="Check this machine before it joins; with TOKEN or --head also the way to the head.")
@click.option("--head", metavar="ADDRESS", help="With --pre: the head's address, HOST or HOST:PORT.")
@click.option("--name", metavar="HOST", help="With --pre TOKEN: the name that this machine joins under. Default: its host name.")
@click.option("--host", metavar="NAME", help="Tell of this host of the cluster alone.")
@click.option(
    "--canary/--no-canary", default=None,
    help="Run a known computation on each card of this machine. Default: where there are cards and no head runs.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@pass_context
def doctor(
    context: CliContext, token: str | None, pre: bool, head: str | None, name: str | None, host: str | None, canary: bool | None, as_json: bool
) -> None:  # fmt: skip
    """Check hardware, network, versions, system and workload, and tell the cure of what is wrong.

    With a head: all its hosts and the links between them. Without one: this machine. Exit code 3 if there is a fault; warnings alone
    are 0. With --pre TOKEN the head compares versions and tries this machine's ports; the token is not used up, and `-`
    reads it from standard input.
    """
    if (token or head or name) and not pre:
        raise UsageError(detail="TOKEN, --head and --name go with --pre. Add it, or name a cluster with --cluster.")
    findings = _pre(context, token, head, name, canary) if pre else _findings(context, host, canary)
    if host is not None and not findings:
        raise NotFound(what=f"host {host!r}")
    _show(context, findings, as_json=as_json)


def _show(context: CliContext, findings: Sequence[Finding], *, as_json: bool) -> None:
    """Print the findings and leave with their exit code."""
    from dgpunet_dask.observe.finding import in_order, summary
    from dgpunet_dask.observe.text import lines, signs_for

    count = summary(findings)
    if as_json:
        error = CheckFailed(what="doctor", count=count["fault"]).to_json() if count["fault"] else None
        emit_json({"findings": [finding.to_json() for finding in in_order(findings)], "summary": count, "error": error})
    else:
        for line in lines(findings, signs_for(sys.stdout.encoding), quiet=context.quiet):
            click.echo(printable(line))
    if count["fault"]:
        raise SystemExit(CheckFailed.exit_code)


def _findings(context: CliContext, host: str | None, canary: bool | None) -> list[Finding]:
    """Return what a cluster's head knows, else what this machine shows."""
    from dgpunet_dask.observe.cluster import check_cluster

    if not context.head_runs():
        return check_cluster(alone(_of_a_member(context, _asked(canary))), host)
    api = context.reach()
    try:
        return check_cluster(with_this_machine(context, api.doctor(), canary), host)
    except LoopbackOnly:
        document = alone(local_facts(context, canary="any" if canary else None))
        return check_cluster({**document, "workers": api.status()["workers"]}, host)
    except (NoHead, NotAllowed) as error:
        told = _untold(context, error)
        return [told, *check_cluster(alone(_of_a_member(context, "any" if canary else None)), host)]


def _untold(context: CliContext, error: NoHead | NotAllowed) -> Finding:
    """Return why this machine alone can be examined; raise `error` where another cluster was asked for."""
    from dgpunet_dask.cluster.agent_api import MOVED
    from dgpunet_dask.observe.finding import Check

    config = _membership(context)
    joined = config is not None and config.membership == "node"
    if context.named is not None or (isinstance(error, NotAllowed) and not joined):
        raise error
    if not joined or config is None:
        cure = "see run/logs/head.log under $DGPUNET_HOME; `dgpunet-dask down` ends what is left of it"
        return Check("head", "system", "head").fault("the head's process runs and does not answer", cure, why=str(error))
    if isinstance(error, NotAllowed):
        cure = "`dgpunet-dask key create USER --scope operator` on the head makes a key; it goes into $DGPUNET_API_KEY"
        return Check("head", "system", config.host).warn("the head tells of the others to an operator's key alone", cure, why=error.message)
    cure = f"see that the head runs and that both are in one network; {MOVED.format(host=config.host)}"
    return Check("head_reach", "network", f"{config.host} -> head").fault(f"no head answers at {', '.join(config.api)}", cure, why=str(error))


def with_this_machine(context: CliContext, document: dict[str, Any], canary: bool | None) -> dict[str, Any]:
    """Add all that can be asked of this machine to what the head knows of it, if it is the head's host."""
    config = None if context.cluster is not None else _membership(context)
    hosts = document.get("hosts")
    if config is None or not isinstance(hosts, dict) or not isinstance(hosts.get(config.host), dict):
        return document
    facts = _of_a_member(context, "any" if canary else None)
    return {**document, "hosts": {**hosts, config.host: {"doctor": facts, **hosts[config.host]}}}


def _of_a_member(context: CliContext, canary: Canary) -> dict[str, Any]:
    """Return the facts of this machine; if it belongs to a cluster, with its way to the head and the ports that it needs."""
    config = _membership(context)
    if config is None:
        return local_facts(context, canary=canary)
    is_head = config.membership == "head"
    head = None if is_head or not config.api else _head_of(config)
    return local_facts(context, head=head, ports=_port_list(config.ports, head=is_head), canary=canary)


def _membership(context: CliContext) -> ClusterConfig | None:
    """Return this machine's place in a cluster, ``None`` without one."""
    from dgpunet_dask.cluster.config import read_config

    return read_config(context.home.cluster_file)


def _head_of(config: ClusterConfig) -> str:
    """Return the address of the head's host."""
    from dgpunet_dask.cluster.config import split_host_port

    return split_host_port(config.api[0], config.ports.api)[0]


def _asked(canary: bool | None) -> Canary:
    """Return where to run the canary without a head: on the cards unless told otherwise, on the CPU if it is asked for and there are none."""
    return "cards" if canary is None else "any" if canary else None


def alone(facts: dict[str, Any]) -> dict[str, Any]:
    """Return the facts of this machine as a cluster of one."""
    return {"head": {"host": facts["host"]}, "hosts": {facts["host"]: {"facts": facts}}}


def _pre(context: CliContext, token: str | None, head: str | None, name: str | None, canary: bool | None) -> list[Finding]:
    """Return what stands in the way of joining."""
    from dgpunet_dask.cluster.config import Ports
    from dgpunet_dask.observe.local import check_host
    from dgpunet_dask.observe.prejoin import check_head

    addresses, fingerprint = _addresses(token, head)
    wanted = _port_list(Ports(), head=not addresses)
    facts = local_facts(context, head=addresses[0][0] if addresses else None, ports=wanted, canary=_asked(canary))
    if not addresses:
        return check_host(facts)
    told = None if token is None else _told_by_head(token, addresses, name)
    findings, offset = check_head(addresses, _needed(told), facts, fingerprint=fingerprint)
    facts["clock"] = {**facts.get("clock", {}), "offset_s": offset}
    reached = not any(finding.level == "fault" for finding in findings if finding.check in ("head_reach", "head_api"))
    return [*check_host(facts), *findings, *(_admission(told, facts) if told is not None and reached else ())]


def _told_by_head(token: str, addresses: Sequence[tuple[str, int]], name: str | None) -> Mapping[str, Any] | DgpunetError:
    """Return what the head tells a machine that would join by `token`, or why it tells nothing."""
    from dataclasses import replace

    from dgpunet_dask.cluster.agent_api import check_request
    from dgpunet_dask.cluster.config import join_host_port
    from dgpunet_dask.daemons.joining import own_name
    from dgpunet_dask.security.tokens import parse_token

    asked = replace(parse_token(token), addresses=tuple(join_host_port(*address) for address in addresses))
    host = own_name(name)
    try:
        return check_request(asked.text, {"host": host})
    except DgpunetError as error:
        return error


def _needed(told: Mapping[str, Any] | DgpunetError | None) -> list[tuple[int, str]]:
    """Return the ports of the head that are needed from here: those that it names, else those that it has unless they were changed."""
    from dgpunet_dask.cluster.config import Ports
    from dgpunet_dask.observe.facts import Facts

    named = Facts({} if told is None or isinstance(told, DgpunetError) else told, "head")
    usual = {"scheduler": (Ports().scheduler, "Dask scheduler"), "peer": (Ports().peer, "agent")}
    return [(int(named.number("ports", key) or port), what) for key, (port, what) in usual.items()]


def _admission(told: Mapping[str, Any] | DgpunetError, facts: Mapping[str, Any]) -> list[Finding]:
    from dgpunet_dask.observe.prejoin import check_admission, check_refusal

    return [check_refusal(told, facts)] if isinstance(told, DgpunetError) else check_admission(told, facts)


def _addresses(token: str | None, head: str | None) -> tuple[list[tuple[str, int]], str | None]:
    """Return host and API port of the head to join, and the fingerprint of its authority if a token tells."""
    from dgpunet_dask.cluster.config import Ports, split_host_port

    api = Ports().api
    if token is None:
        return ([] if head is None else [split_host_port(head, api)]), None
    from dgpunet_dask.security.tokens import parse_token

    parsed = parse_token(token)
    named = parsed.addresses if head is None else (head,)
    return [split_host_port(address, api) for address in named], parsed.fingerprint


def _port_list(ports: Ports, *, head: bool) -> list[tuple[int, str]]:
    """Return the single ports that a host listens on; ranges have room for strangers."""
    found = [(ports.peer, "agent")]
    return [(ports.scheduler, "Dask scheduler"), (ports.api, "API"), *found] if head else found


def local_facts(
    context: CliContext, *, head: str | None = None, ports: Sequence[tuple[int, str]] = (), canary: Canary = None
) -> dict[str, Any]:
    """Return the facts of this machine."""
    from dgpunet_dask.observe.collect import Wanted, collect_local

    home = context.home
    wanted = Wanted(
        home=home.root, arches=home.torch_arches if home.root.is_dir() else None, head=head, ports=ports, ours=_ours(context), canary=canary,
        pki=home.pki,
    )  # fmt: skip
    return collect_local(wanted)


def _ours(context: CliContext) -> Collection[int]:
    """Return the ids of the processes that belong to this home, and of all that they have started."""
    from dgpunet_dask.daemons.register import Register
    from dgpunet_dask.daemons.watching import family

    entries = Register(context.home.run / "processes").running()
    return {pid for entry in entries for pid in family(entry.pid)}
