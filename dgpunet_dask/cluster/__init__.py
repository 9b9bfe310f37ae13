"""How workers are started, and how commands talk to a head."""
