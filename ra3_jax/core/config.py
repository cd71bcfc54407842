"""Settings of the core room. Config modules import nothing heavy, so that `--help` is instant."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis; one of the three may be -1 (all that are left)."""

    data: int = 1
    """Copies of the model that each see other rows."""
    fsdp: int = -1
    """Devices that also share the weights and optimizer state."""
    model: int = 1
    """Devices that share heads, feed-forward and vocabulary (tensor parallelism)."""

    def __post_init__(self):
        sizes = (self.data, self.fsdp, self.model)
        if sizes.count(-1) > 1 or any(n < 1 and n != -1 for n in sizes):
            raise ValueError(f"--mesh {self}: sizes must be positive, and at most one of the three may be -1")

    def __str__(self) -> str:
        return f"data={self.data},fsdp={self.fsdp},model={self.model}"
