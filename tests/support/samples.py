"""Changed copies of samples."""

from dataclasses import replace

from consomme.base.sample import Sample


def with_image(sample: Sample, data: bytes) -> Sample:
    """Return a sample with other bytes for its one image."""
    (image,) = sample.images
    return replace(sample, images=(replace(image, data=data),))
