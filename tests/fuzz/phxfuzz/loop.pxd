"""Runs targets: under libFuzzer where this is linked with it, else by mutation without feedback."""

from phx._core.native cimport *

ctypedef void (*Target)(const u8* data, u64 count) noexcept nogil
