"""Image decoding: one policy for the whole package (numpy, Pillow and simplejpeg only)."""
