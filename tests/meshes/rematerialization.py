"""The warning of XLA's partitioner, on stderr, when it knows no better way between two layouts than the whole array."""

WARNING = "Involuntary full rematerialization"
