"""What is wrong with a cluster, and what a report of it holds."""
