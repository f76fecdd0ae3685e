"""The commands of `python -m ingest`, by what they are about; each imports what it needs when it runs."""
