"""Files, looked at before they are read."""
