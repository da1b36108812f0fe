"""Measurements that are made once and committed under `reports/`: programs of the repository, not of the package."""
