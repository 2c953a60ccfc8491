"""Results of runs: metrics, result rows, hypotheses, queries over them, and the report."""
