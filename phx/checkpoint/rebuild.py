"""The mark of a group that is to be made anew: the file ``checkpoints/<group>/rebuild``.

It says that nothing the node has of the group's state is to be believed: no machine, no checkpoint.
It stays until a checkpoint of another node is in the place of all that, so a crash on the way
begins again. Votes and log are not touched by it.
"""

from __future__ import annotations

from collections.abc import Iterator

from phx.checkpoint.files import FILE, Files, exists, join, make_folders

__all__ = ["MARK", "is_marked", "mark", "unmark"]

MARK = "rebuild"


def is_marked(files: Files, root: str, group: int) -> bool:
    """Whether the group is to be made anew. Raises OSError."""
    folder = join(root, str(group))
    if not exists(files, folder):
        return False
    return any(one.name == MARK and one.kind == FILE for one in files.listing(folder))


def mark(files: Files, root: str, group: int) -> Iterator[str]:
    """Mark it, durably; idempotent. Yields a step's name after each effect. Raises OSError."""
    folder = join(root, str(group))
    make_folders(files, folder)
    if not is_marked(files, root, group):
        files.create(join(folder, MARK)).close()
        yield "marked"
    files.sync(folder)
    yield "durable"


def unmark(files: Files, root: str, group: int) -> Iterator[str]:
    """Another state is in its place, durably; idempotent. As `mark`."""
    if is_marked(files, root, group):
        files.remove(join(root, str(group), MARK))
        yield "unmarked"
        files.sync(join(root, str(group)))
        yield "durable"
