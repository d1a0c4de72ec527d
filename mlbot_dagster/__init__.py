"""mlbot in Dagster: partitions, resources, assets, checks, jobs and schedules. No computation lives here."""
