"""What accelerators can do at best, for rooflines: peaks from the vendors' pages, never measured here.

A time or a rate that is computed from these is a bound, and has to be called one wherever it is printed.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
    """Peaks of one JAX device."""

    name: str
    bf16_flops: float
    """Dense matrix products a second, in FLOPs (2 per multiply-add)."""
    hbm_bytes_per_s: float

    def floor_seconds(self, flops: float, hbm_bytes: float) -> float:
        """The least time for this work on one device: the roofline, without communication or any overhead."""
        return max(flops / self.bf16_flops, hbm_bytes / self.hbm_bytes_per_s)

    def bound_by(self, flops: float, hbm_bytes: float) -> str:
        """Which of the two the least time comes from."""
        return "FLOPs" if flops / self.bf16_flops >= hbm_bytes / self.hbm_bytes_per_s else "HBM"


# By `device_kind`. TPU: docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x}; a tpu7x chip is two devices, a v4 or v5p
# chip is one (megacore); tpu7x's bandwidth is that of JAX's own table for Pallas. GPU: NVIDIA's data sheets, SXM parts,
# without sparsity.
CHIPS: dict[str, Chip] = {
    "TPU v4": Chip("v4", 275e12, 1228e9),
    "TPU v5 lite": Chip("v5e", 197e12, 819e9),
    "TPU v5": Chip("v5p", 459e12, 2765e9),
    "TPU v6 lite": Chip("v6e", 918e12, 1638e9),
    "TPU7x": Chip("tpu7x", 2307e12 / 2, 7380e9 / 2),
    "NVIDIA A100-SXM4-80GB": Chip("A100", 312e12, 2039e9),
    "NVIDIA H100 80GB HBM3": Chip("H100", 989e12, 3350e9),
    "NVIDIA H200": Chip("H200", 989e12, 4800e9),
}


def chip_of(device_kind: str) -> Chip | None:
    """The peaks of a device by its `device_kind`; None for a CPU or a device that is not in the table."""
    return CHIPS.get(device_kind)
