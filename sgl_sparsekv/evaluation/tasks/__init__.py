"""What a server can be asked: one file or folder per evaluation."""
