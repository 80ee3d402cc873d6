"""Programs compiled for machines that need not be at hand, and what they cost there."""
