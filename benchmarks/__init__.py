"""What is measured, and against whom. ``python -m benchmarks --help`` lists the measurements."""
