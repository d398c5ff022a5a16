"""What the verbs that look inside give back: reports, graphs, records of passes, a page."""
