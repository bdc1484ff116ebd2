"""A process with a node whose groups are registers that are written and read."""

from typing import Any

from phx.errors import PhxError
from phx.machine import StateMachine
from phx.machines.kv import KeyValue, encode_set
from phx.testing.node_worker import NodeWorker, run_worker


class ReadWorker(NodeWorker):
    def machine_of(self, name: str) -> StateMachine:
        return KeyValue()

    async def do_write(self, group: int, value: int, timeout: float) -> str | None:
        """None: it is written; else the name of the error."""
        try:
            await self.node.group(group).propose(encode_set("k", b"%d" % value), timeout=timeout)
        except PhxError as error:
            return type(error).__name__
        return None

    async def do_read(self, group: int, how: str, timeout: float) -> tuple[int, str | None]:
        try:
            found = await self.node.group(group).read("k", consistency=how, timeout=timeout)
        except PhxError as error:
            return -1, type(error).__name__
        return int(found.value or b"0"), None

    async def do_barrier(self, group: int, timeout: float) -> Any:
        """The state here, behind a barrier."""
        await self.node.group(group).barrier(timeout=timeout)
        return int((await self.node.group(group).read("k", consistency="stale")).value or b"0")


if __name__ == "__main__":
    run_worker(ReadWorker)
