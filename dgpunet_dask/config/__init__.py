"""Where state lives, what may be set, and YAML files whose mistakes are named by line."""
