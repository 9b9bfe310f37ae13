"""What facts mean: each module turns facts into findings, and reads nothing itself."""
