"""VGG19 weights and feature statistics: files, download, verification."""
