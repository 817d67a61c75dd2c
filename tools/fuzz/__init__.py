"""Differential fuzzing: random networks × structures × compile options, engines against torch in float64."""
