"""prompt -> samples -> log-probs. One sampler, one scorer, the losses.

`events` (what the trace policy can do at a token, as array functions) -> `plan` (what a row must do) -> `sampler`
(does it, with log-probs) -> `scorer` (the same log-probs in one parallel pass) -> `losses`.
"""
