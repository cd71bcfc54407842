"""The identity of an example: a hash of its content.

Randomness and the held-out split depend on it alone. It is the same on every machine and in every
run, whatever the order or size of the corpus.
"""

import hashlib

ID_BITS = 31  # so that an id fits an int32 array and `jax.random.fold_in`


def content_id(*texts: str) -> int:
    """Hash of the texts (prompt, lines) in [0, 2**31); trailing whitespace does not count."""
    digest = hashlib.sha256()
    for text in texts:
        lines = (line.rstrip() for line in text.replace("\r\n", "\n").split("\n"))
        data = "\n".join(lines).rstrip("\n").encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little") + data)  # the length keeps ("a", "bc") from ("ab", "c")
    return int.from_bytes(digest.digest()[:4], "little") >> (32 - ID_BITS)


def is_held_out(example_id: int, fraction: float) -> bool:
    """Whether an example is in the held-out share. A larger share contains any smaller one."""
    if not 0.0 <= fraction < 1.0:
        raise ValueError(f"held_out={fraction}: must be in [0, 1)")
    return example_id < fraction * 2**ID_BITS
