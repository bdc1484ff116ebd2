"""Clusters with a directory, by which groups come and go."""

from contextlib import asynccontextmanager

from .cluster import cluster, until
from .members_lab import counters, free_port


@asynccontextmanager
async def three(folder, machines=counters, **changes):
    async with cluster(folder, machines, groups=1, directory=True, **changes) as nodes:
        yield nodes


def hosts(node, group):
    return group in [one.id for one in node.groups]


def at_ports(*nodes):
    return {node: f"127.0.0.1:{free_port()}" for node in nodes}


async def everywhere(nodes, group, *, there=True):
    await until(lambda: all(hosts(node, group) is there for node in nodes))


def phase(node, group):
    return next(one.phase for one in node.created_groups() if one.group == group)
