"""Text -> token batches, on the host, in numpy.

In the order of the data: `sources` (documents) -> `dedup`, `decontamination` (all three: `corpus`) -> `lines` (logical
lines) -> `codec` (ids, exact spans) -> `programs` -> `trace` (programs with latents, a kind per token) -> `packing`
(rows of fixed length) -> `pipeline` (batches by index). `puzzles` generates the built-in task family.
"""
