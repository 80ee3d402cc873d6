"""From the files of a run to a page that anyone can open, and to a model card."""
