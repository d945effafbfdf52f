"""Providers that misbehave on demand, over real sockets, and a router process in front of them."""
