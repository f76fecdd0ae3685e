"""The report of one evaluation: charts drawn once, shown in one HTML file and saved as PNG, SVG and PDF."""
