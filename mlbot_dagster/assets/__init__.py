"""The assets, one room a file, in the order of the flow."""
