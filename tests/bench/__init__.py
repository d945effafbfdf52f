"""Benchmarks of the router beside other gateways, run by hand or nightly; no test asserts a time. See README.md."""
