def bytes_hash(data: bytes) -> int:
    """64 bits, the same in every process; nothing against whoever looks for a collision."""
