"""What the records say, for people: tables and a page. Needs no torch."""
