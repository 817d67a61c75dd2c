"""What of a target needs the machine at hand: its own description, linkers, whether code runs here."""
