"""A router with two workers, simulated providers, teams, and traffic of every kind: `make demo-traffic`."""
