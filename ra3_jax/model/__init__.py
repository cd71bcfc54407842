"""params -> logits. Flax linen lives here and nowhere else."""
