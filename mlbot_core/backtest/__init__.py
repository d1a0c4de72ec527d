"""Simulation, metrics, verdict and report of a stream of forecasts."""
