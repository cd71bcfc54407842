"""One entry point per job; presets; benchmarks of speed."""
