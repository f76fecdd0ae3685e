"""Report text: normalised, cut into sections, then into parts."""
