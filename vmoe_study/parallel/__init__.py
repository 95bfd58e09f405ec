"""Several devices and processes as one: mesh, sharding rules, hosts."""
