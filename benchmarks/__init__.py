"""What attndsl promises, measured: `python -m benchmarks.<name>`; results land in `benchmarks/results/`."""
