"""The processes of a running cluster, and the only places where features are joined."""
