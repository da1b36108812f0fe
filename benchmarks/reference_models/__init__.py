"""How well the bundled models draw digits, beside what real digits score: `reports/reference-models.md`."""
