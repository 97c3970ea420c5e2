"""Files: looked at before they are read; written, whole or not there."""
