"""Facts about this machine: cards through NVML, and the CPU."""
