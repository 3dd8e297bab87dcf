"""The embedded data: emoji (real pictures), scenes (rendered, exact ground truth), web noise (labelled)."""
