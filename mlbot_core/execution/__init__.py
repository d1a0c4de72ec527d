"""From a target position to orders at the exchange: each exactly once, reconciled, safe when things go wrong."""
