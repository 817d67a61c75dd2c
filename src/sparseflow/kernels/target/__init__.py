"""What a target is: one class for each kind of machine."""
