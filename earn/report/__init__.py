"""Pages with pictures: one module per report, one template, one style sheet."""
