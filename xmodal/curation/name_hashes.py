"""Numbers drawn from names: what a sample or a post draws is the same whatever else is in the dataset."""

import hashlib
from collections.abc import Iterable

import numpy as np


def name_hashes(salt: str, names: Iterable[str]) -> np.ndarray:
    """64 bits of each name's hash: uint64 `(n,)`. Those for different salts are unrelated."""
    start = hashlib.blake2b(f"{salt}\0".encode(), digest_size=8)
    digests = bytearray()
    for name in names:
        hashing = start.copy()
        hashing.update(name.encode())
        digests += hashing.digest()
    return np.frombuffer(digests, dtype=">u8").astype(np.uint64)


def lots(seed: int, purpose: str, names: Iterable[str]) -> np.ndarray:
    """What each name draws for a purpose, float64 in [0, 1): the same whatever else is in the dataset."""
    # Shifted to as many bits as a float holds: never rounded up to 1.
    return (name_hashes(f"{seed}\0{purpose}", names) >> np.uint64(11)) / 2**53
