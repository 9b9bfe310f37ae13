"""`dgpunet-dask policy explain`: where work would go, and why not elsewhere, without running it."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dgpunet_dask.cli.context import CliContext, emit_json, pass_context, printable
from dgpunet_dask.errors import UsageError

if TYPE_CHECKING:
    from dgpunet_dask.model.demand import Demand
    from dgpunet_dask.model.fleet import Fleet


@click.command()
@click.argument("words", nargs=-1, metavar="[KEY=VALUE]...")
@click.option(
    "--demand", "texts", multiple=True, metavar="JSON|KEY=VALUE|FILE",
    help="The demand, such as '{\"stage\": \"embed\", \"vram\": \"4GiB\"}', or a file that says so; repeatable.",
)
@click.option("--fleet", "fleet_file", type=click.Path(path_type=Path), metavar="FLEET.yaml", help="On these machines. Default: the running cluster.")
@click.option("--policy", multiple=True, type=click.Path(path_type=Path), metavar="FILE", help="Under these policy files. Default: the cluster's.")
@click.option("--running", multiple=True, metavar="JSON@DEVICE", help="Such a demand runs already on DEVICE; repeatable.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@pass_context
def explain(
    context: CliContext, words: tuple[str, ...], texts: tuple[str, ...], fleet_file: Path | None, policy: tuple[Path, ...],
    running: tuple[str, ...], as_json: bool,
) -> None:  # fmt: skip
    """Tell where work would go now, and why not elsewhere.

    The demand is given as KEY=VALUE (stage=embed vram=4GiB features=fp8), as JSON, or as a file of either kind. Shown are what is asked
    once the policy is applied, the ranking with its parts, each device's reasons with need, have and policy line, what would change the
    answer, and the nearest fix.
    """
    from dgpunet_dask.model.demand import Demand
    from dgpunet_dask.placement.explanation import explanation, lines

    demand = Demand.parse(_demand((*texts, *words)))
    if fleet_file is None and not policy and not running:
        found = context.reach().explain(demand.to_mapping())
    else:
        found = explanation(_with_running(_fleet(context, fleet_file), running), demand, _policy(context, policy, fleet_file))
    if as_json:
        emit_json({**found, "error": None})
        return
    for line in lines(found, demand.stage or "work"):
        click.echo(printable(line))


def _demand(words: tuple[str, ...]) -> dict[str, Any]:
    """Return the demand of the command line: each word is a mapping, a file with one (with or without ``@``), or KEY=VALUE; later ones win."""
    found: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if word.lstrip().startswith("{"):
            found |= _mapping(None, word)
        elif word.startswith("@") or os.path.isfile(word):  # unlike `Path.is_file`, also of a word too long for a name
            found |= _mapping(Path(word.removeprefix("@")), None)
        elif not equals:
            raise UsageError(detail=f"{word!r} is no KEY=VALUE and no file: write stage=embed vram=4GiB, or '{{\"stage\": \"embed\"}}'.")
        else:
            found[key] = _value(key, value)
    return found


def _mapping(file: Path | None, text: str | None, what: str = "--demand") -> dict[str, Any]:
    """Return the mapping that a file or a word holds, read as all files are: nothing twice, no bare number for a name."""
    from dgpunet_dask.config.yamlfile import load, read_text

    found = load(read_text(file) if file is not None else str(text), what if file is None else str(file)).check().data
    if not isinstance(found, dict):
        raise UsageError(detail=f"{what if file is None else file} is no mapping. Write one such as {{vram: 4GiB}}.")
    return found


#: Keys of a demand that are no text.
_LISTS, _NUMBERS, _TRUTHS = {"features"}, {"gpus", "cpus"}, {"same_host", "cpu_ok", "exclusive"}


def _value(key: str, value: str) -> Any:
    """Return a value of KEY=VALUE as the type that the key takes; what does not fit is left for the demand to refuse."""
    if key in _LISTS:
        return [part for part in value.split(",") if part]
    if key in _NUMBERS and value.isdecimal() and len(value) <= 18:
        return int(value)
    if key in _TRUTHS and value.lower() in {"true", "false"}:
        return value.lower() == "true"
    if key == "inputs":
        return dict(part.partition(":")[::2] for part in value.split(","))
    return value


def _fleet(context: CliContext, file: Path | None) -> Fleet:
    from dgpunet_dask.cli.fleet import live
    from dgpunet_dask.hardware.simulated import simulated_fleet

    return live(context)[0] if file is None else simulated_fleet(file)


def _policy(context: CliContext, files: tuple[Path, ...], fleet: Path | None) -> Any:
    """Return what `files` say; without any, for a live fleet the policies in force there, for a file those of the home."""
    from dgpunet_dask.cluster.policy_files import policy_paths, read_policies
    from dgpunet_dask.cluster.policy_watch import Places

    if files:
        return read_policies(policy_paths(files))
    if fleet is None:
        return read_policies([Path(file) for file in context.reach().policy()["files"]])
    return read_policies(Places(context.home).files())


def _with_running(fleet: Fleet, running: tuple[str, ...]) -> Fleet:
    """Return `fleet` with one unit for each of `running`, as ``{vram: 4GiB}@5090``."""
    from dgpunet_dask.model.demand import Demand

    for number, word in enumerate(running, start=1):
        text, at, device = word.rpartition("@")
        if not at or device not in fleet.by_name:
            raise UsageError(detail=f"--running {word!r} names no device. Write JSON@DEVICE; devices: {', '.join(fleet.by_name)}.")
        fleet = _with_unit(fleet, Demand.parse(_mapping(None, text, "--running")), device, f"running-{number}")
    return fleet


def _with_unit(fleet: Fleet, demand: Demand, device: str, holder: str) -> Fleet:
    from dgpunet_dask.placement.place import activation
    from dgpunet_dask.placement.resolve import resolve

    request = resolve(demand)
    charge = activation(fleet.by_name[device], fleet.charges_on(device), request, holder)
    ends_s = request.run_s(fleet.by_name[device]) if request.known else None
    return fleet.with_charges([*fleet.charges, replace(charge, ends_s=ends_s)])
