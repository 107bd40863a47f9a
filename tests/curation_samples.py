"""Hashes for the steps, made up from names."""

import hashlib


def random_hash(name: str) -> str:
    """256 bits, hex; those of two names differ in about half."""
    return hashlib.sha256(name.encode()).hexdigest()


def flipped(value: str, num_bits: int, first: int = 0) -> str:
    """A hash with `num_bits` other bits, from bit `first` on."""
    mask = ((1 << num_bits) - 1) << first
    return f"{int(value, 16) ^ mask:064x}"
