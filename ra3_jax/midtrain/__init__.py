"""The RA3 method.

`elbo` (equations on lines) -> `rollouts` (thoughts sampled along the expert's program) -> `estep` (selection or policy
gradient) -> `annotate` (the corpus with thoughts) -> `mstep` (next-token training on it) -> `em` (rounds of these) ->
`evaluate` (bounds, pass@k) -> `report`; `inspection` asks a model about any code. Imports `policy`, `train` and what
lies below them; never `rlvr` or `evals`.
"""
