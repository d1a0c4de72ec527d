"""What people look at: small plots now; metrics, alerts and audit as they come."""
