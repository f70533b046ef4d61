"""The gate of a backend's CI: it runs the plan, knows accepted failures, and reports to the CI system."""
