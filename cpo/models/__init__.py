"""Model folders: a checkpoint's contents checked against its configuration."""
