"""Clusters with a directory, by which groups come and go."""

from contextlib import asynccontextmanager

from .cluster import cluster, until
from .members_lab import counters


@asynccontextmanager
async def three(folder, machines=counters, **changes):
    async with cluster(folder, machines, groups=1, directory=True, **changes) as nodes:
        yield nodes


def hosts(node, group):
    return group in [one.id for one in node.groups]


async def everywhere(nodes, group, *, there=True):
    await until(lambda: all(hosts(node, group) is there for node in nodes))


def phase(node, group):
    """As the node has heard; None: not yet."""
    return {one.group: one.phase for one in node.created_groups()}.get(group)
