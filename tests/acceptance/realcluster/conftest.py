"""Real clusters take their time to come up: each module has one for all its tests."""
