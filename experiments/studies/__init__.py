"""Many runs: execute, search, sweep, compare."""
