"""Find exact and near-duplicate pictures: perceptual hashes, hash tables, star clusters."""
