"""One metric per file: tensors in, `compress.report.model.Metric` out."""
