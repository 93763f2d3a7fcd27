"""Load and faults, against a server in a process of its own: few and short in `make test`, for long in `make soak`."""
