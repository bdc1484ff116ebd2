"""What a simulated cluster is like unless a plan says otherwise."""

from __future__ import annotations

LIMITS: dict[str, int] = {
    "window": 64,
    "window_bytes": 1 << 18,
    "batch_bytes_max": 4096,
    "heartbeat_us": 200_000,
    "lease_us": 800_000,
    "election_us": 100_000,
    "resend_us": 300_000,
    "pending_bytes_max": 1 << 18,
    "cache_bytes_max": 1 << 15,
    "frame_bytes_max": 1 << 15,
    "value_bytes_max": 16384,
    "balance": 1,
    "segment_bytes": 1 << 16,
    "journal_bytes_max": 24 << 16,
    "free_segments_max": 3,
    "atom": 512,
    "disk_bytes_max": 0,
    "checkpoint_us": 10_000_000,
    "checkpoints_kept": 2,
    "hold_instances": 10,
    "rejoin": 0,
    "relaxed": 0,
    "agreed_every": 4096,
    "compare_us": 0,
    "members": 0,
    "created": 0,
}

PACE: dict[str, int] = {
    "turn_us_max": 60,
    "write_us_max": 60,
    "sync_us_min": 60,
    "sync_us_max": 600,
    "slow_sync_ppm": 0,
    "slow_sync_us": 200_000,
    "apply_us_max": 400,
    "commit_us_max": 20_000,
    "inline_ppm": 100_000,
    "settle_idle_us": 1_500_000,
    "settle_bytes": 3 << 16,
}
"""How long things take at a host; microseconds, and millionths of cases."""

LINK: dict[str, int] = {
    "delay_us_min": 30,
    "delay_us_max": 300,
    "loss_ppm": 0,
    "twice_ppm": 0,
    "late_ppm": 0,
    "late_us": 50_000,
    "flip_ppm": 0,
    "bytes_per_ms": 0,
    "blocked": 0,
}
"""One direction between two hosts; microseconds, and millionths of frames."""
