"""What happens while a market is open: the newest bar's forecasts, the decision on it, its execution."""
