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

    def __str__(self) -> str:
        return f"data={self.data},fsdp={self.fsdp},model={self.model}"
