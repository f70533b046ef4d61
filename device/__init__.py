"""Who is tested: adapters, simulator, virtual NPU and mutants."""
