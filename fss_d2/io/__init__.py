"""What is read from files and written to them; addresses, and progress on a terminal or in a log."""
