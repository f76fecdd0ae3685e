"""LIS records and slide files to a manifest: specimen labels, patient-level splits, tile counts."""
