"""Policy tests as scripts (design §5.4): cases read from files, run, and told; properties that hold of every policy; coverage."""
