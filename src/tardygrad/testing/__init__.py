"""Public tools for testing: batteries, random fault schedules, a simulated cluster."""
