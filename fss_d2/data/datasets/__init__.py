"""The data sets: one file each with names, metadata and records, and what prepares them on disk."""
