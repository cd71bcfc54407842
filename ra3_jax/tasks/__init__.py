"""Tasks with tests: rows -> tasks, completions -> verdicts."""
