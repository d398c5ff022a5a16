"""The second moment of a convolution's patches, and how it is found."""
