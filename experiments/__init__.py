"""What the paper runs: tasks, data, models, the shared trainer, run records and figures."""
