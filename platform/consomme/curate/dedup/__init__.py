"""Find exact and near copies of pictures: perceptual hashes, hash tables, groups of copies."""
