"""The embedded data: emoji (real pictures), scenes (rendered, exact truth), labelled web noise."""
