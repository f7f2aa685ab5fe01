"""One script per claim, each printing ratios against a named rival."""
