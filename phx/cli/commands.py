"""The ``phx`` command and its subcommands: options, exit codes, nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from phx._version import __version__
from phx.cli.checkpoint import checkpoint
from phx.cli.drain import drain
from phx.cli.groups import groups
from phx.cli.look import inspect, verify
from phx.cli.member import decommission, member
from phx.cli.options import GROUPS_MAX, LOOP, SETTINGS, check_loop, command, fail
from phx.cli.overload import bench
from phx.cli.peers import peers
from phx.cli.recover import recover
from phx.cli.repair import repair


@click.group(context_settings=SETTINGS)
@click.version_option(__version__, prog_name="phx")
def phx() -> None:
    """Replicated, durable state machines: many Paxos groups in one process.

    Results go to stdout, progress to stderr. Exit codes: 0 success, 1 a finding, 2 wrong usage.
    """


phx.add_command(bench)
phx.add_command(checkpoint)
phx.add_command(decommission)
phx.add_command(drain)
phx.add_command(member)
phx.add_command(groups)
phx.add_command(inspect)
phx.add_command(peers)
phx.add_command(recover)
phx.add_command(repair)
phx.add_command(verify)


CONFIG = click.option(
    "--config",
    "config_path",
    required=True,
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="TOML file; see docs/reference/config.md.",
)
MACHINE = click.option(
    "--machine",
    metavar="MODULE:FACTORY",
    default=None,
    help="State machines to run: called with each group id. Default: key-value.",
)
EVENTS = click.option(
    "--json", "as_json", is_flag=True, help="Report on stdout as JSON, one object a line."
)


@command(phx, "node")
@CONFIG
@click.option(
    "--bootstrap", is_flag=True, help="Start as a voter of a new cluster, in an empty folder."
)
@MACHINE
@EVENTS
@LOOP
def node_command(
    config_path: Path, bootstrap: bool, machine: str | None, as_json: bool, loop: str
) -> None:
    """Run one node in the foreground, until SIGTERM or Ctrl-C."""
    run_node(config_path, {}, machine, loop, bootstrap=bootstrap, as_json=as_json)


@command(phx, "join")
@CONFIG
@click.argument("addresses", metavar="[HOST:PORT…]", nargs=-1)
@MACHINE
@EVENTS
@LOOP
def join_command(
    config_path: Path, addresses: tuple[str, ...], machine: str | None, as_json: bool, loop: str
) -> None:
    """Run one node, with an id that was never used, as a new one of a cluster that runs.

    HOST:PORT are some of the cluster's nodes; those of `join` in FILE if none are given. It waits
    until all of its groups have it for a member: say so at one that is, with `phx member add`, or
    `phx member replace`. From then on it is as `phx node`, and the same line starts it again.
    """
    given: dict[str, Any] = {"join": list(addresses)} if addresses else {}
    run_node(config_path, given, machine, loop, bootstrap=True, as_json=as_json, joins=True)


def run_node(
    config_path: Path,
    given: dict[str, Any],
    machine: str | None,
    loop: str,
    *,
    bootstrap: bool,
    as_json: bool,
    joins: bool = False,
) -> None:
    from dataclasses import replace

    from phx import errors
    from phx.cli import node
    from phx.config import Config
    from phx.testing.loops import run_in_loop

    try:
        config = replace(Config.from_toml(config_path), **given)
        factory = node.load_factory(machine or node.DEFAULT_MACHINE)
    except (errors.ConfigError, node.BadMachine) as error:
        raise click.UsageError(str(error)) from error
    if joins and not config.join:
        raise click.UsageError(
            "which nodes does it join? Give HOST:PORT of some, or `join` in FILE"
        )
    try:
        run_in_loop(node.run(config, factory, bootstrap, as_json), loop)
    except errors.PhxError as error:
        fail(f"{type(error).__name__}: {error}")


@command(phx, "init")
@click.option(
    "--dir",
    "folder",
    required=True,
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Where to write node1.toml, node2.toml, … (made if missing).",
)
@click.option("--nodes", type=click.IntRange(1, 15), default=3, show_default=True)
@click.option("--groups", type=click.IntRange(1, GROUPS_MAX), default=100, show_default=True)
@click.option(
    "--port",
    type=click.IntRange(1, 65_000),
    default=7400,
    show_default=True,
    help="Port of node 1; the others follow.",
)
@click.option("--cluster", default="main", show_default=True, help="Name of the cluster.")
@click.option("--json", "as_json", is_flag=True, help="List the files on stdout as JSON.")
def init_command(
    folder: Path, nodes: int, groups: int, port: int, cluster: str, as_json: bool
) -> None:
    """Write the configuration files of a cluster on this machine, to start from."""
    from phx.cli import node, report

    try:
        paths = node.write_configs(folder, nodes, groups, port, cluster)
    except FileExistsError as error:
        fail(f"{error.filename} exists")
    if as_json:
        report.print_json({"files": [str(path) for path in paths]})
    else:
        for path in paths:
            click.echo(f"phx node --config {path} --bootstrap")


@command(phx, "demo")
@click.option("--groups", type=click.IntRange(1, GROUPS_MAX), default=100, show_default=True)
@click.option(
    "--seconds",
    type=click.FloatRange(1, 3600),
    default=10,
    show_default=True,
    help="How long the writers write.",
)
@click.option(
    "--dir",
    "folder",
    metavar="DIR",
    default=None,
    type=click.Path(path_type=Path),
    help="Keep the nodes' data in DIR/node1, node2, node3. Default: a temporary folder.",
)
@click.option(
    "--fault",
    type=click.Choice(["kill", "drop", "stop"]),
    default="kill",
    show_default=True,
    help="What happens to the node that leads most groups: SIGKILL, all its packets "
    "silently dropped, or SIGSTOP.",
)
@click.option(
    "--writers",
    type=click.IntRange(1, 1000),
    default=2,
    show_default=True,
    help="Writers per group in each process, one value in flight each.",
)
@click.option("--json", "as_json", is_flag=True, help="Report on stdout as JSON.")
@LOOP
def demo_command(
    groups: int,
    seconds: float,
    folder: Path | None,
    fault: str,
    writers: int,
    as_json: bool,
    loop: str,
) -> None:
    """Three processes, many groups, the main leader killed: is anything lost?

    Exits with 1 if an acknowledged value is missing on any node, or replicas differ.
    """
    from phx.cli import demo, report

    check_loop(loop)
    options = demo.Options(groups, seconds, folder, fault, writers=writers, loop=loop)
    try:
        result = demo.run(options)
    except (demo.WorkerFailed, OSError) as error:
        fail(str(error))
    if as_json:
        report.print_json(demo.as_json(result))
    else:
        demo.print_result(result)
    if not result.good:
        fail("\n".join(result.findings))


@command(phx, "sim")
@click.option(
    "--seeds",
    type=click.IntRange(1, 100_000_000),
    default=100,
    show_default=True,
    help="How many seeds to run.",
)
@click.option(
    "--from",
    "first",
    type=click.IntRange(0, 1 << 40),
    default=1,
    show_default=True,
    help="The first of them; the others follow.",
)
@click.option(
    "--profile",
    metavar="NAME",
    default="default",
    show_default=True,
    help="Which faults: see docs/reference/cli.md; list: shows them.",
)
@click.option(
    "--jobs", type=click.IntRange(1, 1024), default=1, show_default=True, help="Processes."
)
@click.option(
    "--stop-after",
    type=click.IntRange(1, 1_000_000),
    default=10,
    show_default=True,
    help="Failing seeds after which no new ones are begun.",
)
@click.option("--no-shrink", is_flag=True, help="Do not look for a smaller plan that fails, too.")
@click.option("--trace", is_flag=True, help="Show all kept events before a failure.")
@click.option(
    "--plan",
    "plan_path",
    metavar="FILE",
    default=None,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Run the plan in this file, as --keep wrote it.",
)
@click.option(
    "--keep",
    metavar="DIR",
    default=None,
    type=click.Path(file_okay=False, path_type=Path),
    help="Write the plans that fail, shrunk, to files in DIR.",
)
@click.option("--json", "as_json", is_flag=True, help="Report on stdout as JSON.")
def sim_command(profile: str, plan_path: Path | None, as_json: bool, **options: Any) -> None:
    """Simulate whole clusters with faults: each seed is a run, the same wherever it runs.

    Exits with 1 if an invariant broke in any of them.
    """
    from phx.cli import report, sim
    from phx.sim.fleet import as_json as json_of
    from phx.sim.plan import Plan
    from phx.sim.profiles import PROFILES

    if profile == "list":
        report.print_table(
            "Profiles", ["profile", "what happens"], [[k, p.says] for k, p in PROFILES.items()]
        )
        return
    if profile not in PROFILES:
        raise click.UsageError(f"no profile {profile!r}; there are {', '.join(PROFILES)}")
    try:
        plan = Plan.from_json(plan_path.read_text()) if plan_path else None
    except ValueError as error:
        raise click.UsageError(f"{plan_path}: {error}") from error
    shrink = not options.pop("no_shrink")
    made = sim.Options(profile=profile, plan=plan, shrink=shrink and plan is None, **options)
    result = sim.run(made)
    if as_json:
        report.print_json(json_of(result, lambda failure: sim.replay(made, failure)))
    else:
        sim.print_result(result, made)
    if result.failed:
        seeds = ", ".join(str(one.plan.seed) for one in result.failed)
        fail(f"{len(result.failed)} of {result.seeds} seeds failed: {seeds}")


def fault_kinds(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> list[str] | None:
    """Comma-separated kinds of faults; None: all that can be had."""
    from phx.testing.torture.schedule import KINDS

    if value is None:
        return None
    found = [one.strip() for one in value.split(",")]
    if unknown := sorted(set(found) - set(KINDS)):
        raise click.BadParameter(f"{unknown[0]!r} is none of {', '.join(sorted(KINDS))}")
    return found


@command(phx, "torture")
@click.option(
    "--minutes",
    type=click.FloatRange(0.1, 10_000),
    default=1,
    show_default=True,
    help="Under faults; the checks come on top.",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**63 - 1),
    default=None,
    help="Decides what goes wrong and when. Default: by chance; it is printed.",
)
@click.option("--nodes", type=click.IntRange(3, 9), default=3, show_default=True)
@click.option("--groups", type=click.IntRange(1, 1000), default=4, show_default=True)
@click.option("--clients", type=click.IntRange(1, 1000), default=16, show_default=True)
@click.option(
    "--faults",
    callback=fault_kinds,
    metavar="KIND,KIND,…",
    default=None,
    help="Only these: kill, close, stop, drop, oneway, partial, delay, cut, slow, eio, full, "
    "power, forget, wipe, wipe-journal, lag, flip, replace, grow, shrink, move. Default: all that "
    "this machine can do.",
)
@click.option(
    "--members",
    "changing",
    is_flag=True,
    help="Each episode of faults begins with a change of members; the others come on top.",
)
@click.option(
    "--created",
    "creating",
    is_flag=True,
    help="Groups are created, stopped, moved and deleted, too. Not with --members.",
)
@click.option(
    "--relaxed",
    "relaxing",
    is_flag=True,
    help="Most groups say what is only written; what takes that away hits one node at a time. Not "
    "with --created.",
)
@click.option(
    "--dir",
    "folder",
    metavar="DIR",
    default=None,
    type=click.Path(path_type=Path),
    help="Keep logs and histories in DIR. Default: a temporary folder, which stays if there is a "
    "finding.",
)
@click.option("--json", "as_json", is_flag=True, help="Report on stdout as JSON.")
def torture_command(
    seed: int | None, faults: list[str] | None, as_json: bool, **options: Any
) -> None:
    """Real processes, killed, stopped, cut off, unplugged: is anything broken that was promised?

    Exits with 1 if a value is lost, done twice or read out of order, if nodes differ, or if they do
    not recover.
    """
    from phx.cli import report, torture

    try:
        result = torture.run(seed=seed, faults=faults, **options)
    except torture.Wrong as error:
        raise click.UsageError(str(error)) from error
    except FileExistsError as error:
        raise click.UsageError(f"{error.filename} exists") from error
    except OSError as error:
        fail(str(error))
    if as_json:
        report.print_json(torture.as_json(result))
    else:
        torture.print_result(result)
    if not result.good:
        fail("\n".join(result.findings))
