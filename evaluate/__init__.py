"""A run folder and a manifest to predictions, ROC with honest intervals, a report, heat maps and an encoder."""

__distribution__ = "fullslide"  # Hugging Face also ships a package `evaluate`; the layout test and doctor look at this
