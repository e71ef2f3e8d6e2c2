"""What the controller makes of a run: events in, figures, a table for the terminal and a page out."""
