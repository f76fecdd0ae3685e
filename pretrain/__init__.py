"""A manifest to a run folder: encoder and aggregator trained end to end on every tissue tile of a slide."""
