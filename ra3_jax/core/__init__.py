"""What every room shares and no room owns: sharding, randomness, statistics, run directories, checkpoints.

Array names carry their shape as a suffix. The legend of the whole project:

    B  batch (rows)              T  time (tokens of a row)      V  vocabulary
    L  lines of a program        G  rollouts of a group         W  tokens a row consumes per decode step
    D  model width               F  feed-forward width          H  query heads      K  key/value heads
    E  width of one head         S  slots of a KV cache         N  layers / segments of a plan
    P  tokens of a prompt        R  packed rows of a data set

So `logits_BTV` is [batch, time, vocabulary] and `returns_GL` is [rollout, line].
"""
